"""Windows of streams."""

from __future__ import annotations

from vectorshard.shard.wire.window import Window


def test_a_window_is_full_by_messages_or_by_bytes() -> None:
    window = Window(messages_max=2, bytes_max=10)
    window.enter(4)
    assert window.has_room(6)
    assert not window.has_room(7)
    window.enter(4)
    assert not window.has_room(1)
    window.leave(4)
    assert window.has_room(6)
    assert (window.messages, window.bytes) == (1, 4)


def test_a_message_larger_than_the_window_fits_alone() -> None:
    window = Window(messages_max=2, bytes_max=10)
    assert window.has_room(11)
    window.enter(11)
    assert not window.has_room(0)


def test_a_message_may_change_its_size_and_keeps_its_place() -> None:
    window = Window(messages_max=2, bytes_max=10)
    window.enter(8)
    window.resize(8, 3)
    assert window.has_room(7)
    assert not window.has_room(8)
    window.resize(3, 0)
    assert window.has_room(11), "no bytes are in flight"
    window.enter(11)
    assert not window.has_room(0)
    window.leave(11)
    window.leave(0)
    assert (window.messages, window.bytes) == (0, 0)


def test_messages_without_bytes_count_as_messages() -> None:
    window = Window(messages_max=2, bytes_max=10)
    window.enter(0)
    window.enter(0)
    assert not window.has_room(1)
