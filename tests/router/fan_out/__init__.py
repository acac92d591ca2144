"""Tests of `router/fan_out`."""
