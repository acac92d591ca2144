"""Tests of `shard/engine`."""

import pytest

pytest.register_assert_rewrite("tests.shard.engine.contents")
