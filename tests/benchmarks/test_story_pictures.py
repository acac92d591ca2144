"""The README's pictures: what they show of a run, on light and on dark."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

from benchmarks.story_pictures import (
    FRAMES,
    Moment,
    Word,
    animation,
    in_turn,
    picture,
    sampled,
    word_map,
)

MOMENTS = [
    Moment(0.5, 1_000, 0, "BUFFERING", 32, 32),
    Moment(1.0, 8_000, 0, "TRAINING", 32, 32),
    Moment(4.0, 500, 9_500, "TRAINED", 32, 31),
]
WORDS = [Word("coffee", "coffee", 0.5, 0.5), Word("tea", "coffee", 0.52, 0.5)]


def test_both_are_svg_with_colours_for_dark_pages() -> None:
    for drawn in (picture(WORDS, MOMENTS), animation(MOMENTS)):
        ElementTree.fromstring(drawn)
        assert "prefers-color-scheme: dark" in drawn
        assert 'class="back"' in drawn
        assert len(drawn) < 60_000


def test_the_picture_counts_what_was_found_and_marks_the_training() -> None:
    drawn = picture(WORDS, MOMENTS)
    assert "found: 95 of 96 searched words" in drawn
    assert drawn.count('class="turn"') == 2
    assert ">10,000 rows, while the index trains<" in drawn


def test_a_word_that_would_cover_another_is_no_text() -> None:
    assert [re.findall(r">(\w+)<", part) for part in word_map(WORDS, 0, 0, 300, 200)[1:]] == [
        ["coffee"]
    ]
    apart = [*WORDS, Word("cocoa", "coffee", 0.5, 0.1)]
    assert any(">cocoa<" in part for part in word_map(apart, 0, 0, 300, 200))


def test_frames_are_equal_steps_of_time_with_sums_of_what_was_found() -> None:
    frames = sampled(MOMENTS, 4)
    assert [each.state for each in frames] == ["TRAINING", "TRAINING", "TRAINING", "TRAINED"]
    assert [(each.asked, each.found) for each in frames] == [(64, 64)] * 3 + [(96, 95)]
    assert "found: 99%" in animation(MOMENTS)


def test_one_frame_is_visible_at_a_time() -> None:
    ends = [re.findall(r'keyTimes="([^"]*)"', in_turn(number))[0] for number in range(FRAMES)]
    spans = [tuple(map(float, times.split(";"))) for times in ends]
    assert spans[0] == (0.0, spans[1][1])
    assert all(span[2] == after[1] for span, after in pairwise(spans[1:]))
    assert len(spans[-1]) == 2
