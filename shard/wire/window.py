"""The window of a stream: how many messages, of how many bytes, are under way at a time. Pure.

Every stream has one at each end: a server reads no further than its window, and a client sends no
more than it expects to be answered. Who waits for room, and how, is the stream's own business.
"""

from __future__ import annotations


class Window:
    """Counts the messages that are under way.

    Parameters
    ----------
    messages_max
        How many there may be.
    bytes_max
        How many bytes they may have together. A larger message fits when it is alone.
    """

    __slots__ = ("bytes", "bytes_max", "messages", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.messages = 0
        self.bytes = 0

    def has_room(self, message_bytes: int) -> bool:
        """Whether a message of this size fits in."""
        if not self.messages:
            return True
        return self.messages < self.messages_max and self.bytes + message_bytes <= self.bytes_max

    def enter(self, message_bytes: int) -> None:
        """Count a message in, whether or not there is room."""
        self.messages += 1
        self.bytes += message_bytes

    def leave(self, message_bytes: int) -> None:
        """Count a message out."""
        self.messages -= 1
        self.bytes -= message_bytes
