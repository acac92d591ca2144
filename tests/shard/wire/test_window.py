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
