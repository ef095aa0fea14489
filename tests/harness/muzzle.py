"""Keeps a node from answering and lets it go on living: its answers vanish on their way to NATS."""

from __future__ import annotations

from busbar_messaging.topology import REPLIES

from harness.link import Filter

_END = b"\r\n"
_PUBLISHES = (b"PUB", b"HPUB")
_ANSWER = REPLIES.rstrip("*").encode()


class Muzzle:
    """For the connections of one node; what it says is parsed as NATS's client protocol."""

    def __init__(self) -> None:
        self.on = False
        self.swallowed = 0

    def new_filter(self) -> Filter:
        """For one connection."""
        unread = b""

        def passes(piece: bytes) -> bytes:
            nonlocal unread
            unread += piece
            passed = list[bytes]()
            while (end := _first_message(unread)) > 0:
                message, unread = unread[:end], unread[end:]
                if self.on and _is_answer(message):
                    self.swallowed += 1
                else:
                    passed.append(message)
            return b"".join(passed)

        return passes


def _first_message(said: bytes) -> int:
    """Where it ends; 0 while it is not whole."""
    line_ends = said.find(_END)
    if line_ends < 0:
        return 0
    end, words = line_ends + len(_END), said[:line_ends].split()
    if words and words[0].upper() in _PUBLISHES:
        end += int(words[-1]) + len(_END)
    return end if len(said) >= end else 0


def _is_answer(message: bytes) -> bool:
    words = message[: message.find(_END)].split()
    return words[0].upper() in _PUBLISHES and words[1].startswith(_ANSWER)
