"""Usage in, money posted: on a real bus and a real database."""

from __future__ import annotations

import asyncio
import signal
from uuid import UUID

import asyncpg
from billing_parts import Gateway, Service
from busbar_contracts.billing.v1.events_pb2 import UsagePosted
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_messaging import topology
from busbar_messaging.dispositions import decode
from harness.polling import eventually
from nats.aio.client import Client

COST_NANOS = 100_000
HOUR_NS = 3600 * 10**9


async def test_a_record_becomes_one_balanced_charge(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    body = {"amount_nanos": 10**9, "currency": "USD", "reference": "invoice 1"}
    await billing.json("POST", f"/tenants/{tenant}/topups", json=body)
    record = gateway.record(tenant, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    await gateway.publish(record)

    [usage] = await billing.posted(tenant, 1)
    [charge] = await billing.transfers(request_id=usage["request_id"])
    assert usage["request_id"] == f"req_{record.request_id.hex()}"
    assert usage["amount_nanos"] == COST_NANOS
    assert usage["outcome"] == "completed"
    assert usage["trace_id"] == "ab" * 16
    assert usage["transfer_id"] == charge["transfer_id"]
    assert {p["account"]: p["amount_nanos"] for p in charge["postings"]} == {
        "tenant_available": -COST_NANOS,
        "revenue": COST_NANOS,
    }
    assert await billing.balance(tenant) == 10**9 - COST_NANOS


async def test_what_is_charged_without_being_there_is_owed_and_paid_from_the_next_top_up(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    await gateway.publish(gateway.record(tenant))

    [usage] = await billing.posted(tenant, 1)
    [charge] = await billing.transfers(request_id=usage["request_id"])
    assert {p["account"]: p["amount_nanos"] for p in charge["postings"]} == {
        "tenant_receivable": -COST_NANOS,
        "revenue": COST_NANOS,
    }
    balance = await billing.json("GET", f"/tenants/{tenant}/balance")
    assert balance["owed_nanos"] == COST_NANOS
    assert balance["available_nanos"] == 0
    assert balance["balance_nanos"] == -COST_NANOS


async def test_a_rating_is_explained_line_by_line(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    record = gateway.record(tenant, output_tokens=3)
    await gateway.publish(record)
    await billing.posted(tenant, 1)

    explained = await billing.json("GET", f"/usage/req_{record.request_id.hex()}")
    lines = {line["component"]: line for line in explained["lines"]}
    assert explained["amount_nanos"] == COST_NANOS + 1_200
    assert lines["output_token"]["quantity"] == 3
    assert lines["output_token"]["exact_nanos"] == "1200"
    assert sum(int(line["exact_nanos"]) for line in lines.values()) == explained["amount_nanos"]


async def test_an_answer_in_which_nothing_counts_is_posted_and_costs_nothing(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    sizes = ("input_tokens", "output_tokens", "request_bytes", "response_bytes", "compute_us")
    record = gateway.record(tenant, price_class="chat-small", **dict.fromkeys(sizes, 0))
    await gateway.publish(record)

    [usage] = await billing.posted(tenant, 1)
    transfers = await billing.transfers(request_id=usage["request_id"])
    assert (usage["amount_nanos"], usage["rated_class"]) == (0, "chat-small")
    assert [one["kind"] for one in transfers] == ["charge"]
    assert await billing.balance(tenant) == 0


async def test_a_void_nets_to_zero_before_after_and_beside_its_record(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    before, after, beside = (gateway.record(tenant) for _ in range(3))
    await gateway.publish(voids=(gateway.void(before),))
    await gateway.publish(before)
    await gateway.publish(after)
    await gateway.publish(voids=(gateway.void(after), gateway.void(after)))
    await gateway.publish(beside, voids=(gateway.void(beside),))
    await gateway.publish(voids=(gateway.void(beside),))
    await gateway.publish(gateway.record(tenant))

    usage = await eventually(
        lambda: billing.usage(tenant),
        within_s=15,
        what="three voids",
        until=lambda found: sum(one["voided"] for one in found) == 3 and len(found) == 4,
    )
    assert await billing.balance(tenant) == -COST_NANOS
    for one in usage:
        transfers = await billing.transfers(request_id=one["request_id"])
        kinds = sorted(transfer["kind"] for transfer in transfers)
        assert kinds == (["charge", "void"] if one["voided"] else ["charge"])


async def test_a_class_without_prices_is_charged_by_the_fallback_and_flagged(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    await gateway.publish(gateway.record(tenant, price_class="not-in-the-book"))

    [usage] = await billing.posted(tenant, 1)
    assert usage["price_class"] == "not-in-the-book"
    assert usage["rated_class"] == "default"
    assert usage["amount_nanos"] > 0
    assert await billing.metric("busbar_billing_unpriced_records_total") >= 1


async def dead_letters(bus: Client, sequence: int) -> list[dict[str, str]]:
    """Headers of the dead letters of one USAGE message."""
    jetstream = bus.jetstream(timeout=5)
    found: list[dict[str, str]] = []
    state = (await jetstream.stream_info(topology.DLQ.name)).state
    for number in range(max(state.first_seq, 1), state.last_seq + 1):  # 0 where it never had any
        letter = await jetstream.get_msg(topology.DLQ.name, number)
        headers = letter.headers or {}
        if headers.get("Busbar-Sequence") == str(sequence):
            payload = (letter.data or b"").hex()
            found.append({**headers, "payload": payload, "subject": letter.subject or ""})
    return found


async def test_poison_goes_to_the_dead_letters_with_its_reason_and_nothing_waits_for_it(
    billing: Service, gateway: Gateway, bus: Client, tenant: str
) -> None:
    poison = await gateway.publish_raw(b"\xff\xff\xff not protobuf")
    await gateway.publish(gateway.record(tenant))

    await billing.posted(tenant, 1)
    [letter] = await eventually(
        lambda: dead_letters(bus, poison), within_s=10, what="the dead letter"
    )
    assert letter["subject"] == topology.dead_letter_subject("billing", "billing-usage")
    assert "not a busbar.gateway.v1.UsageRecorded" in letter["Busbar-Reason"]
    assert letter["Busbar-Subject"] == topology.usage_subject("r1", "g1")
    assert letter["Busbar-Stream"] == "USAGE"
    assert bytes.fromhex(letter["payload"]) == b"\xff\xff\xff not protobuf"


async def test_only_the_absurd_part_of_a_batch_is_left_out(
    billing: Service, gateway: Gateway, bus: Client, tenant: str
) -> None:
    absurd = [
        gateway.record(tenant, input_tokens=2**63),
        gateway.record("nobody-we-know"),
        gateway.record("'; DROP TABLE postings; --"),
        gateway.record(tenant, request_id=b"short"),
        gateway.record(tenant, outcome=usage_pb2.USAGE_OUTCOME_UNSPECIFIED),
        gateway.record(tenant, admitted_unix_ns=-5),
        gateway.record(""),
        gateway.record(tenant, deployment="nul\x00"),
    ]
    bad_void = usage_pb2.UsageVoid(request_id=b"", tenant_id=tenant)
    good = gateway.record(tenant)
    sequence = await gateway.publish(*absurd, good, voids=(bad_void,))

    [usage] = await billing.posted(tenant, 1)
    letters = await eventually(
        lambda: dead_letters(bus, sequence),
        within_s=10,
        what="nine dead letters",
        until=lambda found: len(found) == 9,
    )
    assert usage["request_id"] == f"req_{good.request_id.hex()}"
    assert await billing.balance(tenant) == -COST_NANOS
    alone = [decode(usage_pb2.UsageRecorded, bytes.fromhex(one["payload"])) for one in letters]
    assert {len(one.records) + len(one.voids) for one in alone} == {1}
    reasons = " ".join(one["Busbar-Reason"] for one in letters)
    for part in ("input_tokens", "does not exist", "request_id has 5 bytes", "outcome", "empty"):
        assert part in reasons


async def test_a_killed_service_charges_each_record_once(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    for _ in range(2):
        for _ in range(50):
            await gateway.publish(gateway.record(tenant))
        await billing.end(signal.SIGKILL)
        await billing.start()

    found = await eventually(
        lambda: billing.usage(tenant),
        within_s=60,  # what was in hand when killed comes again after the consumer's ack wait
        what="100 records are posted",
        until=lambda found: len(found) >= 100,
    )
    assert len(found) == 100
    assert len(await billing.transfers(tenant_id=tenant)) == 100
    assert await billing.balance(tenant) == -100 * COST_NANOS


async def test_told_to_stop_it_finishes_and_exits_cleanly(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    await gateway.publish(*[gateway.record(tenant) for _ in range(500)])
    status = await billing.end(signal.SIGTERM)
    await billing.start()

    assert status == 0
    await billing.posted(tenant, 500)


async def test_posted_between_insert_and_acknowledgement_is_a_duplicate_afterwards(
    billing: Service, gateway: Gateway, as_service: asyncpg.Connection, tenant: str
) -> None:
    """A message that was posted and not acknowledged comes again: here, the same bytes twice."""
    record = gateway.record(tenant)
    before = await billing.metric("busbar_billing_duplicates_total")
    await gateway.publish(record)
    await billing.posted(tenant, 1)
    await gateway.publish(record)

    async def duplicates() -> float:
        return await billing.metric("busbar_billing_duplicates_total")

    await eventually(duplicates, within_s=10, what="a duplicate", until=lambda n: n > before)
    query = "SELECT count(*) FROM transfers WHERE request_id = $1"
    assert await as_service.fetchval(query, UUID(bytes=record.request_id)) == 1


async def test_another_record_of_a_charged_request_is_put_aside_and_not_charged(
    billing: Service, gateway: Gateway, bus: Client, tenant: str
) -> None:
    before = await billing.metric("busbar_billing_conflicting_records_total")
    kept, beside = gateway.record(tenant), gateway.record(tenant)
    more = usage_pb2.UsageRecord()
    more.CopyFrom(kept)
    more.output_tokens = 1_000_000
    slower = usage_pb2.UsageRecord()
    slower.CopyFrom(beside)
    slower.finished_unix_ns += 10**6
    await gateway.publish(kept, voids=(gateway.void(kept),))
    await billing.posted(tenant, 1)
    later = await gateway.publish(more, kept)
    at_once = await gateway.publish(beside, slower, beside)

    [of_more] = await eventually(lambda: dead_letters(bus, later), within_s=20, what="one letter")
    [of_slower] = await eventually(
        lambda: dead_letters(bus, at_once), within_s=20, what="one more letter"
    )
    assert "output_tokens 1000000 instead of 0" in of_more["Busbar-Reason"]
    assert "a duration in us of 2000 instead of 1000" in of_slower["Busbar-Reason"]
    for letter, record in ((of_more, more), (of_slower, slower)):
        alone = decode(usage_pb2.UsageRecorded, bytes.fromhex(letter["payload"]))
        assert list(alone.records) == [record]
    assert len(await billing.usage(tenant)) == 2
    assert await billing.balance(tenant) == -COST_NANOS
    after = await billing.metric("busbar_billing_conflicting_records_total")
    assert after - before >= 2


async def test_the_same_told_otherwise_is_a_repeat(
    billing: Service, gateway: Gateway, bus: Client, tenant: str
) -> None:
    """As a gateway of another release encodes it, or one tells it later: with fields that we do not
    know, under another span, by a clock that is set otherwise meanwhile."""
    first = gateway.record(tenant, output_tokens=3, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    again = gateway.record(tenant, request_id=first.request_id, output_tokens=3)
    again.admitted_unix_ns = first.admitted_unix_ns - HOUR_NS
    again.finished_unix_ns = first.finished_unix_ns - HOUR_NS
    again.MergeFromString(b"\xc2\x3e\x02hi")  # field 1000
    before = await billing.metric("busbar_billing_duplicates_total")
    await gateway.publish(first)
    await billing.posted(tenant, 1)
    sequence = await gateway.publish(again)

    async def duplicates() -> float:
        return await billing.metric("busbar_billing_duplicates_total")

    await eventually(duplicates, within_s=20, what="a duplicate", until=lambda n: n > before)
    assert len(await billing.transfers(tenant_id=tenant)) == 1
    assert await dead_letters(bus, sequence) == []


async def test_charges_are_announced(
    billing: Service, gateway: Gateway, bus: Client, tenant: str
) -> None:
    subject = topology.event_subject("billing", "usage_posted")
    subscription = await bus.subscribe(subject)
    record = gateway.record(tenant)
    await gateway.publish(record)
    await billing.posted(tenant, 1)

    async with asyncio.timeout(10):
        while True:
            event = decode(UsagePosted, (await subscription.next_msg(timeout=10)).data)
            [charge] = [c for c in event.charges if c.tenant_id == tenant] or [None]
            if charge is not None:
                break
    assert charge.request_id == record.request_id
    assert (charge.amount_nanos, charge.currency) == (COST_NANOS, "USD")
    await subscription.unsubscribe()
