"""The little of protobuf's wire format that saves taking whole messages apart.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

_LOW_BITS, _MORE = 0x7F, 0x80


def varint(number: int) -> bytes:
    """A number as a length or a field's value is written."""
    if number <= _LOW_BITS:
        return bytes((number,))
    encoded = bytearray()
    while number > _LOW_BITS:
        encoded.append(number & _LOW_BITS | _MORE)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
