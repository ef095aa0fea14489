"""`busbar bus letters | letter | replay` on a real bus, with billing at the other end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from busbar_cli.main import run
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_contracts.node.v1 import work_pb2
from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.dead_letters import REASON, SUBJECT
from busbar_runtime.platform import Platform
from harness.polling import eventually
from harness.usage_sent import publish_usage
from uuid_utils.compat import uuid7

WITHIN_S = 10
USAGE_LETTERS = topology.dead_letter_subject("billing", "billing-usage")
Json = dict[str, Any]
Busbar = Callable[..., Json]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Billing and what it needs."""
    running = Platform(tmp_path_factory.mktemp("letters"), parts=["billing", "provisioner"])
    running.launch()
    yield running
    running.shutdown()


@pytest.fixture
def busbar(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Busbar:
    """The command; its answer, and its exit status as `status`."""
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(platform.home.endpoints_file))

    def busbar(*arguments: str) -> Json:
        capsys.readouterr()
        status = run([*arguments, "--json"])
        said = capsys.readouterr()
        return {"status": status, "err": said.err, **(json.loads(said.out) if said.out else {})}

    return busbar


def record_of(tenant_id: str) -> bytes:
    """One answer of 1,000 tokens."""
    now_ns = time.time_ns()
    record = usage_pb2.UsageRecord(
        request_id=uuid7().bytes,
        tenant_id=tenant_id,
        key_id="key_test",
        deployment="tiny-lm",
        price_class="chat-small",
        api="openai.chat",
        outcome=usage_pb2.USAGE_OUTCOME_COMPLETED,
        admitted_unix_ns=now_ns,
        finished_unix_ns=now_ns,
        input_tokens=1_000,
        attempt=1,
        node="r1.s1.n1",
    )
    return usage_pb2.UsageRecorded(gateway_id="g1", records=[record]).SerializeToString()


def letters(busbar: Busbar, count: int, containing: str) -> list[Json]:
    """The letters whose reason contains this, once there are so many."""

    async def look() -> list[Json]:
        items = (await asyncio.to_thread(busbar, "bus", "letters"))["items"]
        return [one for one in items if containing in one["reason"]]

    return asyncio.run(
        eventually(
            look,
            within_s=WITHIN_S,
            what=f"{count} letters about {containing}",
            until=lambda found: len(found) == count,
        )
    )


def usage(busbar: Busbar, tenant_id: str, count: int) -> list[Json]:
    """What the tenant is charged for, once it is so much."""

    async def look() -> list[Json]:
        return (await asyncio.to_thread(busbar, "usage", "--tenant", tenant_id))["items"]

    return asyncio.run(
        eventually(
            look,
            within_s=WITHIN_S,
            what=f"{count} charges",
            until=lambda found: len(found) >= count,
        )
    )


def test_what_nobody_could_be_charged_for_is_replayed_and_charged_once(
    busbar: Busbar, platform: Platform
) -> None:
    publish_usage(platform, record_of("late"))
    publish_usage(platform, record_of("late"))
    [first, second] = letters(busbar, 2, "'late' does not exist")
    shown = busbar("bus", "letter", str(first["letter_id"]))
    busbar("tenant", "create", "Late", "--tenant-id", "late")
    planned = busbar("bus", "replay", "--subject", USAGE_LETTERS, "--dry-run")
    kept = busbar("bus", "letters")["items"]
    by_id = busbar("bus", "replay", str(first["letter_id"]), str(first["letter_id"]))
    again = busbar("bus", "replay", str(first["letter_id"]))
    by_subject = busbar("bus", "replay", "--subject", "busbar.dlq.billing.*")

    assert shown["content"]["records"][0]["tenant_id"] == "late"
    assert bytes.fromhex(shown["payload_hex"])
    assert {one["state"] for one in planned["items"]} == {"would be replayed"}
    assert [one["letter_id"] for one in kept] == [first["letter_id"], second["letter_id"]]
    assert [one["state"] for one in by_id["items"]] == ["replayed"]
    assert again["status"] == 3
    assert [one["letter_id"] for one in by_subject["items"]] == [second["letter_id"]]
    charged = usage(busbar, "late", 2)
    ids = {one["request_id"].removeprefix("req_") for one in charged}
    assert len(ids) == len(charged) == 2
    assert shown["content"]["records"][0]["request_id"] in ids
    assert busbar("balance", "late")["owed_nanos"] == 2 * 100_000
    audited = busbar("audit")
    assert audited["clean"], json.dumps(audited)


def test_what_still_cannot_be_handled_becomes_a_letter_again(
    busbar: Busbar, platform: Platform
) -> None:
    publish_usage(platform, b"\xff\xff no protobuf")
    [letter] = letters(busbar, 1, "not a busbar.gateway")
    shown = busbar("bus", "letter", str(letter["letter_id"]))
    replayed = busbar("bus", "replay", "--all", "--limit", "1")
    [new] = letters(busbar, 1, "not a busbar.gateway")

    assert shown["content"] is None
    assert [one["letter_id"] for one in replayed["items"]] == [letter["letter_id"]]
    assert new["letter_id"] > letter["letter_id"]
    assert new["origin_sequence"] == replayed["items"][0]["sequence"]


@pytest.mark.parametrize(
    "wrong", [(), ("7", "--all"), ("--all", "--subject", ">"), ("0",), ("--all", "--limit", "0")]
)
def test_which_letters_must_be_said_without_doubt(busbar: Busbar, wrong: tuple[str, ...]) -> None:
    assert busbar("bus", "replay", *wrong)["status"] == 2


def bury(platform: Platform, subject: str, payload: bytes, headers: dict[str, str]) -> None:
    """Put a letter aside that is not billing's."""
    found = platform.endpoints
    user = "provisioner"

    async def once() -> None:
        password = found["nats_credentials"][user]
        client = await connect(
            BusSettings(nats_url=found["nats"], nats_user=user, nats_password=password), "test"
        )
        await client.jetstream(timeout=5).publish(subject, payload, headers=headers)
        await close(client)

    asyncio.run(once())


def test_what_is_over_is_kept_and_says_why(busbar: Busbar, platform: Platform) -> None:
    work = work_pb2.InferenceWork(request_id=uuid7().bytes, tenant_id="late", deployment="tiny-lm")
    bury(platform, topology.DEAD_WORK, work.SerializeToString(), {REASON: "over: work"})
    fact = topology.event_subject("node", "drained")
    aside = topology.dead_letter_subject("telemetry", "telemetry-events")
    bury(platform, aside, b"?", {REASON: "over: fact", SUBJECT: fact})
    found = letters(busbar, 2, "over: ")
    ids = [str(one["letter_id"]) for one in found]
    shown = busbar("bus", "letter", ids[0])
    refused = busbar("bus", "replay", *ids)

    assert shown["content"]["tenant_id"] == "late"
    assert refused["status"] == 1
    assert all(one in refused["err"] for one in ids)
    states = [one["state"] for one in refused["items"]]
    assert "may ask again" in states[0]
    assert "would hear twice" in states[1]
    assert letters(busbar, 2, "over: ") == found


def test_a_letter_that_is_not_there_is_not_found(busbar: Busbar) -> None:
    assert busbar("bus", "letter", "999999")["status"] == 3
