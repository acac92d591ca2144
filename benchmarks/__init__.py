"""Measurements against peers and against limits. They are clients of the servers they measure."""
