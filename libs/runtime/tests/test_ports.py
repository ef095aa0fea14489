from __future__ import annotations

import socket

import pytest
from busbar_runtime.fleet import Fleet
from busbar_runtime.ports import HIGHEST_PORT, LOOPBACK, PortPool, PortRefusedError
from busbar_runtime.services import Ports


def test_two_pools_never_hand_out_the_same_port() -> None:
    one, other = PortPool(), PortPool()
    try:
        port = one.take()

        with pytest.raises(PortRefusedError, match=f"port {port} .*another platform"):
            other.take(wanted=port)
    finally:
        one.close()
        other.close()


def test_a_port_that_somebody_listens_on_is_not_handed_out() -> None:
    pool = PortPool()
    try:
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = taken.getsockname()[1]

            with pytest.raises(PortRefusedError, match=f"port {port} .*Address already in use"):
                pool.take(wanted=port)
    finally:
        pool.close()


def test_a_wanted_port_is_available_again_once_the_pool_is_closed() -> None:
    first, second = PortPool(), PortPool()
    port = first.take()
    first.close()

    assert second.take(wanted=port) == port

    second.close()


@pytest.mark.parametrize("port", [0, HIGHEST_PORT + 1, 99_999])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    pool = PortPool()

    with pytest.raises(PortRefusedError, match=f"{port} is no port: 1 to 65535 are"):
        pool.take(wanted=port)

    pool.close()


def test_a_listener_has_the_port_that_was_named_for_it_or_there_is_no_platform() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        pool = PortPool()
        with pytest.raises(PortRefusedError, match=f"http: port {port} "):
            Ports.take(pool, {"http": port}, Fleet.of(0, 1))
        pool.close()
    pool = PortPool()
    ports = Ports.take(pool, {"http": port}, Fleet.of(0, 1))
    pool.close()

    assert ports["http"] == port
