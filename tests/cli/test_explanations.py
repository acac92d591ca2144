"""What a person is told of an explanation."""

from __future__ import annotations

from dataclasses import replace

from vectorshard.cli.explanations import (
    HITS,
    Tried,
    explanation_table,
    is_worth_trying,
    ordinal,
    sentence_of,
)
from vectorshard.shard.descriptions import Explanation
from vectorshard.shard.types import ExactReason, ShardReceipt

FOUND = Explanation(
    exists=True,
    shard=1,
    list=17,
    centroid_rank=5,
    nprobe_needed=5,
    exact_rank=3,
    score=0.5,
    candidates_needed=31,
    candidates=120,
)
HOPELESS = replace(FOUND, nprobe_needed=0, candidates_needed=2_310)
HIDDEN = replace(FOUND, hidden_by_filter=True)
BUFFERED = Explanation(exists=True, shard=1, buffered=True, exact_rank=3, score=0.5)
RECEIPT = ShardReceipt(shard=1, nprobe=12, candidates=60)


def said(explanation: Explanation, tried: Tried | None = None) -> str:
    return sentence_of(
        explanation,
        collection="words",
        id_="'coffee'",
        query="'tea'",
        rows=20_000,
        tried=tried,
    )


def test_what_finds_it_is_said() -> None:
    assert said(FOUND, Tried(True, RECEIPT)) == (
        "'coffee' ranks 3rd of 20,000 for 'tea'. It is in list 17 of shard 1, the 5th nearest to "
        "the query: nprobe 5 finds it, and a smaller nprobe does not. The default search probes 12 "
        "lists and finds it."
    )


def test_what_does_not_find_it_is_said_and_what_would() -> None:
    assert said(FOUND, Tried(False, RECEIPT)).endswith(
        "The default search probes 12 lists and does not find it: use --nprobe 5 or --exact."
    )
    assert said(HOPELESS, Tried(False, RECEIPT)).endswith(
        "the 5th nearest to the query, but its code ranks only 2,310th there, and a search by "
        "nprobe for 10 hits scores only 120 candidates: no nprobe finds it. The default search "
        "probes 12 lists and does not find it: use --exact."
    )


def test_a_search_that_scores_every_row_is_said_to() -> None:
    told = said(HOPELESS, Tried(True, ShardReceipt(shard=1)))
    assert told.endswith("The default search scores every row and finds it.")


def test_why_a_search_scores_every_row_is_said() -> None:
    short = replace(HOPELESS, exact_reason=ExactReason.SHORT)
    told = said(short, Tried(True, RECEIPT))
    assert told.endswith(
        "The default search scores every row (the index proposes too few) and finds it."
    )


def test_a_rank_beyond_the_hits_of_a_search_is_said() -> None:
    assert said(replace(FOUND, exact_rank=2_345)).endswith(
        ": nprobe 5 reaches it, and a smaller nprobe does not. Only a search for 2,345 hits "
        "or more returns it."
    )


def test_the_nearest_list_is_found_by_every_nprobe() -> None:
    told = said(replace(FOUND, centroid_rank=1, nprobe_needed=1))
    assert told.endswith("of shard 1, the nearest to the query: nprobe 1 finds it.")


def test_what_no_list_holds_has_sentences_of_its_own() -> None:
    assert said(BUFFERED) == (
        "'coffee' ranks 3rd of 20,000 for 'tea'. It is in the training buffer of shard 1, which "
        "every search scores exactly, at any nprobe."
    )
    assert said(Explanation(deleted=True)) == (
        "'coffee' was deleted from words: no search finds it."
    )
    assert said(Explanation()).startswith("There is no 'coffee' in words: it was never written")


def test_what_a_filter_hides_is_said_to_be_hidden() -> None:
    assert said(HIDDEN).endswith("finds it, and a smaller nprobe does not. The filter excludes it.")


def test_a_search_is_tried_only_where_its_outcome_is_not_known() -> None:
    assert is_worth_trying(FOUND)
    assert is_worth_trying(replace(HOPELESS, exact_rank=HITS))
    for known in (BUFFERED, HIDDEN, Explanation(), replace(FOUND, exact_rank=HITS + 1)):
        assert not is_worth_trying(known)


def test_ordinals() -> None:
    numbers = (1, 2, 3, 4, 10, 11, 12, 13, 21, 102, 112, 1_003)
    assert " ".join(map(ordinal, numbers)) == (
        "1st 2nd 3rd 4th 10th 11th 12th 13th 21st 102nd 112th 1,003rd"
    )


def shown(explanation: Explanation, tried: Tried | None = None) -> dict[str, str]:
    """Return the table's values by their figures."""
    table = explanation_table(explanation, tried=tried)
    figures, values = (list(column.cells) for column in table.columns)
    return dict(zip(map(str, figures), map(str, values), strict=True))


def test_the_table_shows_every_figure_that_means_something() -> None:
    assert shown(FOUND, Tried(False, RECEIPT)) == {
        "exact rank": "3",
        "score": "0.5",
        "shard": "1",
        "in the training buffer": "no",
        "list": "17",
        "rank of the list's centroid": "5",
        "nprobe needed": "5",
        "candidates needed at that rank": "31",
        "candidates of a search by nprobe": "120",
        "nprobe of the default search": "12",
        "candidates of the default search": "60",
        "found by the default search": "no",
    }
    assert shown(HOPELESS)["nprobe needed"] == "no nprobe finds it"
    assert shown(BUFFERED) == {
        "exact rank": "3",
        "score": "0.5",
        "shard": "1",
        "in the training buffer": "yes",
    }
    of_ivf_flat = replace(FOUND, candidates_needed=0, candidates=0)
    assert not [figure for figure in shown(of_ivf_flat) if "candidates" in figure]
