"""What the training text says next after the longest part of the context that it contains.

An unbounded n-gram model over a suffix array (Liu et al. 2024, "Infini-gram"). The transformer
beside it learned for a minute; where the text itself continues the context, the text is trusted.
"""

from bisect import bisect_left, bisect_right

import numpy as np

LONGEST_MATCH = 48
SHORTEST_MATCH = 6
SURE_MATCH = 16
MOST_TRUST = 0.95
MOST_PLACES = 4096
TEXT_END = 0  # stands in the text where one text ends; no text contains this byte


def suffix_order(text: bytes) -> np.ndarray:
    """Every position in `text`, sorted by the LONGEST_MATCH bytes that follow it."""
    order = sorted(range(len(text)), key=lambda at: text[at : at + LONGEST_MATCH])
    return np.array(order, dtype=np.int32)


class Memory:
    def __init__(self, text: bytes, order: np.ndarray, vocabulary: int) -> None:
        self._text = text
        self._order = order
        self._vocabulary = vocabulary

    def mix(self, context: bytes, chances: np.ndarray) -> np.ndarray:
        """`chances` of the next token, with what the text says in proportion to the match."""
        length, first, last = self._longest(context[-LONGEST_MATCH:])
        trust = (length - SHORTEST_MATCH + 1) / (SURE_MATCH - SHORTEST_MATCH + 1)
        trust = min(MOST_TRUST, max(0.0, trust))
        follows = self._order[first : min(last, first + MOST_PLACES)] + length
        follows = follows[follows < len(self._text)]
        if trust == 0 or len(follows) == 0:
            return chances
        said = np.frombuffer(self._text, dtype=np.uint8)[follows].astype(np.int64)
        said[said == TEXT_END] = self._vocabulary - 1
        counts = np.bincount(said, minlength=self._vocabulary)
        return (1 - trust) * chances + trust * counts / counts.sum()

    def _longest(self, context: bytes) -> tuple[int, int, int]:
        """Length of the longest suffix of `context` in the text, and where it stands in order.

        If a suffix occurs, so do all shorter ones: the length is found by halving.
        """
        low, high, found = 0, len(context), (0, 0, 0)
        while low < high:
            length = (low + high + 1) // 2
            first, last = self._places(context[-length:])
            if first < last:
                low, found = length, (length, first, last)
            else:
                high = length - 1
        return found

    def _places(self, part: bytes) -> tuple[int, int]:
        def at(position: np.int32) -> bytes:
            return self._text[position : position + len(part)]

        first = bisect_left(self._order, part, key=at)
        if first == len(self._order) or at(self._order[first]) != part:
            return first, first
        return first, bisect_right(self._order, part, lo=first, key=at)
