"""The window of a stream: how many messages, and how many bytes, are in flight at a time.

Pure. A server reads no further than its window; a client sends no more than its window.
What happens when the window is full is up to the stream: it waits, or it refuses the message.
"""

from __future__ import annotations


class Window:
    """Count the messages in flight, at most `messages_max`, and their bytes, at most `bytes_max`.

    A larger message fits when it is alone.
    """

    __slots__ = ("bytes", "bytes_max", "messages", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.messages = 0
        self.bytes = 0

    def has_room(self, message_bytes: int) -> bool:
        """Return whether a message of this size fits in."""
        return self.messages < self.messages_max and (
            not self.bytes or self.bytes + message_bytes <= self.bytes_max
        )

    def enter(self, message_bytes: int) -> None:
        """Count a message in, whether or not there is room."""
        self.messages += 1
        self.bytes += message_bytes

    def resize(self, before_bytes: int, after_bytes: int) -> None:
        """Count a message in flight with another size than before."""
        self.bytes += after_bytes - before_bytes

    def leave(self, message_bytes: int) -> None:
        """Count a message out, with the size that it has now."""
        self.messages -= 1
        self.bytes -= message_bytes
