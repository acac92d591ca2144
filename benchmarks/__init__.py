"""Measurements against peers and against the limit. Clients only: imports router.client."""
