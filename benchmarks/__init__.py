"""Measurements against peers and against the limit. Clients only: imports client.client."""
