"""Tests of `router/remote`."""
