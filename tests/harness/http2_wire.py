"""What a gRPC server put on the wire, whether or not its client still read it."""

from __future__ import annotations

from collections.abc import Iterator

_FRAME_HEAD_BYTES, _DATA, _PADDED = 9, 0, 0x8
_MESSAGE_HEAD_BYTES = 5


def grpc_messages(sent: bytes) -> Iterator[bytes]:
    """The whole messages of a connection with one call; frames as in RFC 9113."""
    data = b"".join(_data_frames(sent))
    while len(data) >= _MESSAGE_HEAD_BYTES:
        end = _MESSAGE_HEAD_BYTES + int.from_bytes(data[1:_MESSAGE_HEAD_BYTES])
        if end > len(data):
            return
        yield data[_MESSAGE_HEAD_BYTES:end]
        data = data[end:]


def _data_frames(sent: bytes) -> Iterator[bytes]:
    while len(sent) >= _FRAME_HEAD_BYTES:
        end = _FRAME_HEAD_BYTES + int.from_bytes(sent[:3])
        kind, flags = sent[3], sent[4]
        if kind == _DATA:
            assert not flags & _PADDED, "padding is not read here; gRPC servers send none"
            yield sent[_FRAME_HEAD_BYTES:end]
        sent = sent[end:]
