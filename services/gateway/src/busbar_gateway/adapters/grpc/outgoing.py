"""What clients have not got yet when the native front is about to be closed.

The front does not say when an answer that it was given has left, and drops it when closed. What it
cannot write at once waits for a socket that is full; what waits for a client's HTTP/2 window
cannot be seen.
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
_LITTLE_BYTES = 4_096
"""So much is on its way to clients that go on asking, and are refused."""


async def all_taken(connections: Connections, within_s: float) -> None:
    """Wait until nobody who is connected has much left to take, at most so long.

    That is a fifth of a second at least, unless nobody is connected. Raises OSError when this
    process's files cannot be looked at.
    """
    now = asyncio.get_running_loop().time
    last_busy = now()
    ends = last_busy + max(within_s, _WRITTEN_AFTER_S)
    changed = dict[Peer, tuple[int, float]]()
    while True:
        began = now()
        found = {peer: unsent(connection) async for peer, connection in connections}
        if not found:
            return
        before, changed = changed, {}
        for peer, count in found.items():
            if count > _LITTLE_BYTES:
                known = before.get(peer)
                changed[peer] = known if known and known[0] == count else (count, began)
        if any(began - since < _STUCK_AFTER_S for _, since in changed.values()):
            last_busy = began
        rest_s = min(ends, last_busy + _WRITTEN_AFTER_S) - now()
        if rest_s <= 0:
            return
        again_s = max(_LOOK_EVERY_S, _RESTS_PER_LOOK * (now() - began))
        await asyncio.sleep(min(again_s, rest_s))
