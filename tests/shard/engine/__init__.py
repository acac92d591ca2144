"""Tests of `shard/engine`."""
