"""Tests of `shard/storage`."""
