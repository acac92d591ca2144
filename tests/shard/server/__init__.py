"""Tests of `shard/server`."""
