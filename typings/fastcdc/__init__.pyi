from collections.abc import Iterator
from mmap import mmap

class Chunk:
    offset: int
    length: int

def fastcdc(
    data: bytes | mmap, *, min_size: int, avg_size: int, max_size: int
) -> Iterator[Chunk]: ...
