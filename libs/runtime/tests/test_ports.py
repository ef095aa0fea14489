from __future__ import annotations

import socket

from busbar_runtime.ports import LOOPBACK, PortPool


def test_two_pools_never_hand_out_the_same_port() -> None:
    one, other = PortPool(), PortPool()
    try:
        port = one.take()

        assert other.take(wanted=port) != port
    finally:
        one.close()
        other.close()


def test_a_port_that_somebody_listens_on_is_not_handed_out() -> None:
    pool = PortPool()
    try:
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = taken.getsockname()[1]

            assert pool.take(wanted=port) != port
    finally:
        pool.close()


def test_a_wanted_port_is_available_again_once_the_pool_is_closed() -> None:
    first, second = PortPool(), PortPool()
    port = first.take()
    first.close()

    assert second.take(wanted=port) == port

    second.close()
