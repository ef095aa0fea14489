"""What clients have not got yet when the native front is about to be closed.

The front does not say when an answer that it was given has left, and drops it when closed. What it
cannot write waits for a socket that is full.
"""

from __future__ import annotations

import asyncio

from busbar_gateway.adapters.grpc.sockets import Connections, Peer, unsent

_LOOK_EVERY_S = 0.02
_RESTS_PER_LOOK = 5
"""With thousands of connections a look takes long."""
_WRITTEN_AFTER_S = 0.2
"""By then the front has written what it was given, or filled the socket."""
_STUCK_AFTER_S = 2.0
"""Who has taken nothing for so long is not waited for."""


async def all_taken(connections: Connections, within_s: float) -> None:
    """Wait until nobody who is connected has anything left to take, at most so long.

    That is a fifth of a second at least, unless nobody is connected.
    """
    now = asyncio.get_running_loop().time
    changed = now()
    ends = changed + max(within_s, _WRITTEN_AFTER_S)
    left = dict[Peer, int]()
    while True:
        began = now()
        found = {peer: unsent(connection) async for peer, connection in connections}
        if not found:
            return
        if (found := {peer: count for peer, count in found.items() if count}) != left:
            left, changed = found, now()
        rest_s = min(ends, changed + (_STUCK_AFTER_S if left else _WRITTEN_AFTER_S)) - now()
        if rest_s <= 0:
            return
        again_s = max(_LOOK_EVERY_S, _RESTS_PER_LOOK * (now() - began))
        await asyncio.sleep(min(again_s, rest_s))
