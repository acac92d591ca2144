"""Tests of shard.wire, module by module."""
