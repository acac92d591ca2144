"""Tests of `shard/runtime`."""
