"""Tests of the shard, one file a module."""
