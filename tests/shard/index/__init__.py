"""Tests of `shard/index`."""
