"""Tests of `shard/rows`."""
