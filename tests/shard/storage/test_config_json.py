"""A collection's configuration survives the row store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.storage.config_json import config_from_json, config_to_json
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Metric,
    NlistRule,
)

counts = st.integers(0, 2**32 - 1)
configs = st.builds(
    CollectionConfig,
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
    dim=counts,
    metric=st.sampled_from(Metric),
    id_type=st.sampled_from(IdType),
    index=st.builds(
        IndexConfig,
        kind=st.sampled_from(IndexKind),
        min_training_size=counts,
        nlist_rule=st.sampled_from(NlistRule),
        nlist=counts,
    ),
    target_recall=st.floats(0, 1),
    filter_fields=st.lists(
        st.builds(FilterField, st.text(), st.sampled_from(FieldType)), max_size=4
    ).map(tuple),
)


@given(configs)
def test_a_configuration_comes_back_as_it_was_written(config: CollectionConfig) -> None:
    assert config_from_json(config_to_json(config)) == config


@given(configs)
def test_equal_configurations_have_equal_text(config: CollectionConfig) -> None:
    assert config_to_json(config_from_json(config_to_json(config))) == config_to_json(config)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"name": "a"}', '{"index": 3}', '"text"']
)
def test_other_text_is_corrupt(text: str) -> None:
    with pytest.raises(RowStoreCorrupt):
        config_from_json(text)


def test_an_unknown_value_is_corrupt() -> None:
    config = CollectionConfig(name="a", dim=2, metric=Metric.L2, id_type=IdType.INT64)
    text = config_to_json(config).replace('"l2"', '"hamming"')
    with pytest.raises(RowStoreCorrupt, match="hamming"):
        config_from_json(text)
