"""Tests of `shard/search`."""
