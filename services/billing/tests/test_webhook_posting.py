"""What a receiver's name, certificate and answer can do to whoever sends to it: nothing."""

from __future__ import annotations

import ipaddress
import ssl
import time
from datetime import timedelta

import pytest
import trustme
from busbar_billing.adapters.webhooks.posting import Poster
from busbar_billing.domain.web_targets import Target, TargetPolicy
from busbar_billing.domain.webhooks import Attempt
from webhook_receiver import Receiver, receiving

HERE = ipaddress.ip_network("127.0.0.1/32")
LOOPBACK_ALLOWED = TargetPolicy(allow_http=True, allowed_networks=(HERE,))
SOON = timedelta(seconds=0.3)


class Names:
    """A resolver that says one thing after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        return self.answers.pop(0)


def at(receiver: Receiver, scheme: str = "http") -> Target:
    return Target(scheme, "hooks.example.com", receiver.port, "/in?a=1")


async def test_what_is_checked_is_what_is_connected_to() -> None:
    """A name that leads elsewhere the next time it is asked gains nothing."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    poster = Poster(LOOPBACK_ALLOWED, names)
    async with receiving("127.0.0.1") as receiver:
        first = await poster.post(at(receiver), {"webhook-id": "m"}, b"{}")
        asked = list(names.asked)
        rebound = await poster.post(at(receiver), {}, b"{}")

    assert first == Attempt(204)
    assert asked == ["hooks.example.com"]
    assert rebound.status is None
    assert rebound.error == "the host has no public address"
    [got] = receiver.received
    assert got.path == "/in?a=1"
    assert got.headers["host"] == f"hooks.example.com:{receiver.port}"


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["::1", "10.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"]]
)
async def test_by_default_a_name_that_leads_inside_is_not_connected_to(
    addresses: list[str],
) -> None:
    async with receiving() as receiver:
        attempt = await Poster(TargetPolicy(), Names(addresses)).post(at(receiver), {}, b"{}")

    assert attempt == Attempt(None, "the host has no public address")
    assert receiver.received == []


async def test_the_systems_own_names_are_no_exception() -> None:
    async with receiving() as receiver:
        target = Target("http", "localhost", receiver.port, "/")
        attempt = await Poster(TargetPolicy()).post(target, {}, b"{}")

    assert attempt == Attempt(None, "the host has no public address")
    assert receiver.received == []


async def test_of_several_addresses_the_allowed_ones_are_tried() -> None:
    async with receiving("127.0.0.1") as receiver:
        poster = Poster(LOOPBACK_ALLOWED, Names(["10.0.0.1", "127.0.0.1"]))
        assert await poster.post(at(receiver), {}, b"{}") == Attempt(204)


@pytest.mark.parametrize("behaviour", ["hang", "half-head"])
async def test_who_does_not_answer_is_not_waited_for(behaviour: str) -> None:
    async with receiving() as receiver:
        receiver.answers = [behaviour]  # type: ignore[list-item]
        poster = Poster(LOOPBACK_ALLOWED, Names(["127.0.0.1"]), timeout=SOON)
        began = time.monotonic()
        attempt = await poster.post(at(receiver), {}, b"{}")

    assert attempt == Attempt(None, "no answer within 0.3 s")
    assert time.monotonic() - began < 5


async def test_a_head_without_an_end_is_given_up() -> None:
    async with receiving() as receiver:
        receiver.answers = ["flood"]
        attempt = await Poster(LOOPBACK_ALLOWED, Names(["127.0.0.1"])).post(at(receiver), {}, b"{}")

    assert attempt.status is None
    assert attempt.error


async def test_a_body_without_an_end_is_not_read() -> None:
    async with receiving() as receiver:
        receiver.answers = ["half-body"]
        poster = Poster(LOOPBACK_ALLOWED, Names(["127.0.0.1"]))
        began = time.monotonic()
        attempt = await poster.post(at(receiver), {}, b"{}")

    assert attempt == Attempt(200)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("name", "taken"), [("hooks.example.com", True), ("other.com", False)])
async def test_the_certificate_must_be_of_the_name_whatever_the_address(
    name: str,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    trusted = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with receiving(tls=context) as receiver:
        poster = Poster(LOOPBACK_ALLOWED, Names(["127.0.0.1"]))
        attempt = await poster.post(at(receiver, "https"), {}, b"{}")

    assert (attempt.status == 204) is taken
    assert ("certificate" in attempt.error.lower()) is not taken
    assert len(receiver.received) == int(taken)


async def test_a_name_that_nobody_knows_and_a_closed_port_are_reasons() -> None:
    async with receiving() as receiver:
        pass

    async def unknown(host: str) -> list[str]:
        raise OSError(f"no {host}")

    nobody = await Poster(LOOPBACK_ALLOWED, unknown).post(at(receiver), {}, b"{}")
    closed = await Poster(LOOPBACK_ALLOWED, Names(["127.0.0.1"])).post(at(receiver), {}, b"{}")

    assert nobody == Attempt(None, "hooks.example.com cannot be resolved")
    assert closed.status is None
    assert closed.error
