"""The bus is written down once, and what is written down is bounded and unambiguous."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from busbar_gateway.settings import GatewaySettings
from busbar_messaging import topology
from busbar_messaging.topology import NodeId

REPO = Path(__file__).resolve().parents[2]
SITES = [("r1", "s1"), ("r1", "s2"), ("r2", "s3")]
STREAMS = topology.streams(["r1", "r2"], SITES)
CONSUMERS = [*topology.consumers(SITES), topology.work_consumer("r1", "some-model")]
PUBLISHED = [
    topology.work_subject("r1", "some-model"),
    topology.usage_subject("r1", "gateway-1"),
    topology.measured_subject(NodeId("r1", "s1", "n1")),
    topology.event_subject("node", "triton_lost"),
    topology.dead_letter_subject("billing", "billing-usage"),
]
CORE_ONLY = [topology.reply_subject("gateway-1"), topology.cancel_subject("r1.s1.n1")]


def matches(pattern: str, subject: str) -> bool:
    """NATS subject matching: `*` is one token, `>` is the rest."""
    wanted, actual = pattern.split("."), subject.split(".")
    for left, right in itertools.zip_longest(wanted, actual):
        if left == ">":
            return right is not None
        if left is None or right is None or left not in {"*", right}:
            return False
    return True


@pytest.mark.parametrize("subject", PUBLISHED)
def test_each_published_subject_falls_into_exactly_one_stream(subject: str) -> None:
    homes = [s.name for s in STREAMS if any(matches(p, subject) for p in s.subjects)]

    assert len(homes) == 1, f"{subject} falls into {homes}"


@pytest.mark.parametrize("subject", CORE_ONLY)
def test_core_subjects_are_stored_nowhere(subject: str) -> None:
    homes = [s.name for s in STREAMS if any(matches(p, subject) for p in s.subjects)]

    assert homes == []


def test_stream_subjects_do_not_overlap() -> None:
    for left, right in itertools.combinations(STREAMS, 2):
        for a, b in itertools.product(left.subjects, right.subjects):
            assert not matches(a, b), f"{left.name} {a} covers {right.name} {b}"
            assert not matches(b, a), f"{right.name} {b} covers {left.name} {a}"


@pytest.mark.parametrize("stream", STREAMS, ids=lambda s: s.name)
def test_each_stream_is_bounded_in_age_and_size(stream: topology.StreamSpec) -> None:
    assert stream.max_age.total_seconds() > 0
    assert stream.max_bytes > 0


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda c: c.durable)
def test_each_consumer_is_bounded(consumer: topology.ConsumerSpec) -> None:
    assert consumer.ack_wait.total_seconds() > 0
    assert consumer.max_deliver > 0
    assert consumer.max_ack_pending > 0
    assert consumer.stream in {stream.name for stream in STREAMS}


def test_work_that_nobody_takes_comes_out_again_for_as_long_as_a_request_waits() -> None:
    consumer = topology.work_consumer("r1", "m")
    waits = GatewaySettings.model_fields["request_timeout"].default

    assert consumer.ack_wait * consumer.max_deliver >= waits


@pytest.mark.parametrize("bucket", topology.BUCKETS, ids=lambda b: b.name)
def test_each_bucket_is_bounded(bucket: topology.BucketSpec) -> None:
    assert bucket.max_bytes > 0
    assert bucket.storage == "file" or bucket.ttl is not None


def test_no_other_source_file_spells_a_subject() -> None:
    literal = re.compile(r"""["'f]busbar\.(work|usage|measured|evt|dlq|reply|cancel|ack)\.""")
    offenders = [
        str(path.relative_to(REPO))
        for root in ("libs", "services")
        for path in (REPO / root).rglob("src/**/*.py")
        if path.name != "topology.py" and literal.search(path.read_text())
    ]

    assert offenders == []


@pytest.mark.parametrize(
    "name", ["", "UPPER", "dot.ted", "sp ace", "a" * 64, "-lead", "star*", ">"]
)
def test_names_that_would_break_a_subject_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        topology.checked_name(name)


@pytest.mark.parametrize("text", ["", "r1", "r1/s1", "r1/s1/n1/x", "r1/s1/", "R1/s1/n1"])
def test_a_malformed_node_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        NodeId.parse(text)


def test_a_node_id_reads_back_from_both_of_its_forms() -> None:
    node = NodeId("r1", "s1", "n1")

    assert NodeId.parse(node.key) == node
    assert NodeId.parse(str(node)) == node


@pytest.mark.parametrize("deployment", ["m", "some-model", "a_b--canary", "m-" + "0" * 32])
def test_a_queues_name_says_whose_work_it_hands_out(deployment: str) -> None:
    plain = topology.queue_name(deployment)
    sealed = topology.sealed_queue(deployment, "0123456789abcdef" * 2)

    assert {topology.deployment_of_queue(name) for name in (plain, sealed)} == {deployment}
    assert (topology.is_sealed(plain), topology.is_sealed(sealed)) == (False, True)
    assert topology.work_consumer("r1", deployment, sealed).durable == sealed


@pytest.mark.parametrize(
    "told",
    ["work-other", "work-m~", "work-m~short", "work-m.>", "*", "m", "work-m~" + "0" * 32 + "\n"],
)
def test_a_queue_that_is_none_of_the_deployments_is_refused(told: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a work queue of 'm'"):
        topology.queue_name("m", told)
