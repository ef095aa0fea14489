"""Bytes that are on the bus today must be readable tomorrow: golden messages."""

from __future__ import annotations

import pytest
from busbar_contracts.billing.v1.events_pb2 import (
    AuditBreached,
    BalanceExhausted,
    BalanceLow,
    WebhookDisabled,
)
from busbar_contracts.billing.v1.keys_pb2 import ApiKey
from busbar_contracts.gateway.v1.status_pb2 import DeploymentLoad, GatewayStatus, VersionOutcomes
from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome, UsageRecord, UsageRecorded
from busbar_contracts.node.v1.work_pb2 import (
    FailureKind,
    InferenceWork,
    WorkChunk,
    WorkFailed,
    WorkFinished,
    WorkFrame,
    WorkTimings,
    WorkUsage,
)
from busbar_contracts.scheduler.v1.bundle_pb2 import (
    BundleChunk,
    BundleContents,
    BundledFile,
    BundleSeal,
    SealedBundle,
)
from busbar_contracts.scheduler.v1.demand_pb2 import DemandHistory, DemandSeason
from busbar_contracts.scheduler.v1.deployment_pb2 import (
    Canary,
    Deployment,
    ModelManifest,
    RolledBack,
    Rollout,
    RolloutPhase,
)
from busbar_contracts.scheduler.v1.events_pb2 import RolloutMoved
from busbar_contracts.scheduler.v1.plan_pb2 import (
    CanaryRoute,
    NodePlacement,
    ReplicaAssignment,
    Route,
    RouteTarget,
)
from busbar_errors import Rejected
from busbar_messaging.dispositions import decode
from google.protobuf.message import Message

REQUEST_ID = bytes(range(16))

GOLDEN: list[tuple[Message, str]] = [
    (
        InferenceWork(
            request_id=REQUEST_ID,
            attempt=2,
            tenant_id="t1",
            deployment="echo",
            deadline_unix_ms=1_700_000_000_000,
            reply_subject="inbox",
            stream=True,
            payload=b"\x01\x02",
        ),
        (
            "0a10000102030405060708090a0b0c0d0e0f10021a0274312204656368"
            "6f2880d095ffbc313205696e626f7840014a020102"
        ),
    ),
    (
        WorkFrame(
            request_id=REQUEST_ID,
            attempt=1,
            node="r1.s1.n1",
            chunk=WorkChunk(
                sequence=2, payload=b"\x09", usage=WorkUsage(output_tokens=3), compute_us=7
            ),
        ),
        "0a10000102030405060708090a0b0c0d0e0f10011a0872312e73312e6e312a0b08021201091a0210032007",
    ),
    (
        WorkFrame(
            request_id=REQUEST_ID,
            attempt=1,
            node="r1.s1.n1",
            finished=WorkFinished(
                payload=b"\x09",
                usage=WorkUsage(input_tokens=3, output_tokens=4),
                timings=WorkTimings(queue_us=5, compute_us=6),
            ),
        ),
        (
            "0a10000102030405060708090a0b0c0d0e0f10011a0872312e73312e6e3132"
            "0f0a01091a0408031004220408051006"
        ),
    ),
    (
        WorkFrame(
            request_id=REQUEST_ID,
            attempt=1,
            failed=WorkFailed(kind=FailureKind.FAILURE_KIND_UNAVAILABLE, reason="x"),
        ),
        "0a10000102030405060708090a0b0c0d0e0f10013a050803120178",
    ),
    (WorkFailed(reason="x", told_to_leave=True), "1201781801"),
    (WorkUsage(input_tokens=3, cached_tokens=2), "08031802"),
    (ReplicaAssignment(cached_tokens_output="c"), "320163"),
    (ModelManifest(cached_tokens_output="c"), "7a0163"),
    (
        InferenceWork(request_id=REQUEST_ID, engine_losses=1),
        "0a10000102030405060708090a0b0c0d0e0f5001",
    ),
    (
        UsageRecorded(
            gateway_id="g1",
            records=[
                UsageRecord(
                    request_id=REQUEST_ID,
                    tenant_id="t1",
                    outcome=UsageOutcome.USAGE_OUTCOME_COMPLETED,
                    input_tokens=7,
                )
            ],
        ),
        "0a026731121a0a10000102030405060708090a0b0c0d0e0f1202743138015007",
    ),
    (
        AuditBreached(check="c", subject="s", detail="d", found_unix_ms=5),
        "0a01631201731a01642005",
    ),
    (ApiKey(key_id="k", tenant_id="t", deployments=["d"]), "0a016b1201741a0164"),
    (
        Deployment(
            name="d",
            replicas=2,
            max_replicas=3,
            pins=["r1.s1"],
            per_site_max=4,
            per_feeder_max=5,
            survives_site_loss=True,
            value_nanos_per_request=6,
            previous_bundle_digest="x",
            scale_down_after_s=7,
        ),
        "0a0164200240034a0572312e733150045805600168067201787807",
    ),
    (
        DemandHistory(
            deployment="d",
            seasons=[DemandSeason(period_min=2, loads=[0.5, 1], seen=b"\x02\x01", judged_min=3)],
            unchanged_judged_min=4,
            loading_ms=5,
        ),
        "0a01641212080212080000003f0000803f1a020201280320042805",
    ),
    (
        Route(deployment="d", fencing_token=9, wakes=True, wakes_within_ms=1500),
        "0a01641009580160dc0b",
    ),
    (
        Route(
            deployment="d",
            canary=CanaryRoute(
                track="d--canary",
                bundle_digest="x",
                percent=10,
                targets=[RouteTarget(region="r", ready_slots=2, ready_replicas=1)],
            ),
        ),
        "0a01646a190a09642d2d63616e617279120178180a22070a017210021801",
    ),
    (
        DeploymentLoad(
            deployment="d",
            versions=[
                VersionOutcomes(
                    bundle_digest="x",
                    answered_count=1,
                    failed_count=2,
                    timed_count=3,
                    log_latency_sum=0.5,
                    log_latency_square_sum=0.25,
                )
            ],
        ),
        "0a0164521b0a017810011802200329000000000000e03f31000000000000d03f",
    ),
    (
        Deployment(
            name="d",
            rollout=Rollout(
                canary_percent=10,
                observe_s=120,
                max_error_ratio=0.5,
                max_latency_ratio=1.5,
                min_samples=50,
                ready_within_s=600,
            ),
            canary=Canary(
                bundle_digest="x",
                phase=RolloutPhase.ROLLOUT_PHASE_TAKING_OVER,
                percent=50,
                since_unix_ms=7,
            ),
            rolled_back=RolledBack(bundle_digest="y", reason="slow", at_unix_ms=8),
        ),
        "0a016482011b080a107819000000000000e03f21000000000000f83f283230d8048a01090a017818022032280792010b0a01791204736c6f771808",
    ),
    (
        RolloutMoved(
            deployment="d",
            bundle_digest="x",
            percent=50,
            rolled_back=True,
            reason="slow",
            phase=RolloutPhase.ROLLOUT_PHASE_LEAVING,
        ),
        "0a0164120178183220012a04736c6f773004",
    ),
    (
        GatewayStatus(
            gateway_id="g1",
            loads=[DeploymentLoad(deployment="d", in_flight=1, queued=2, unready_count=3)],
        ),
        "0a0267312a090a0164100118024803",
    ),
    (
        NodePlacement(
            node="r1.s1.n1",
            fencing_token=9,
            replicas=[ReplicaAssignment(deployment="d", bundle_digest="sha256:00", slots=2)],
        ),
        "0a0872312e73312e6e31100922100a016412097368613235363a30301802",
    ),
    (
        NodePlacement(
            node="r1.s1.n1",
            replicas=[ReplicaAssignment(deployment="d", slots=2, queue="work-d~00")],
        ),
        "0a0872312e73312e6e3122100a016418023a09776f726b2d647e3030",
    ),
    (
        BalanceLow(tenant_id="t1", currency="USD", balance_nanos=-5, threshold_nanos=6),
        "0a027431120355534418fbffffffffffffffff012006",
    ),
    (
        BalanceExhausted(tenant_id="t1", currency="USD", balance_nanos=3),
        "0a02743112035553441803",
    ),
    (
        WebhookDisabled(tenant_id="t1", endpoint_id="whe_1", reason="gone"),
        "0a02743112057768655f311a04676f6e65",
    ),
    (
        BundleContents(
            name="m",
            version="1",
            files=[
                BundledFile(
                    path="1/m.onnx",
                    size_bytes=5,
                    chunks=[BundleChunk(sha256=b"\x01\x02", size_bytes=5)],
                )
            ],
        ),
        "0a016d1201311a140a08312f6d2e6f6e6e7810051a060a0201021005",
    ),
    (
        SealedBundle(
            contents=b"\x01\x02",
            seals=[BundleSeal(public_key=b"\x03", signature=b"\x04", approves_code=True)],
        ),
        "0a02010212080a01031201041801",
    ),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_the_wire_form_has_not_changed(message: Message, golden: str) -> None:
    encoded = message.SerializeToString(deterministic=True)

    assert encoded.hex() == golden
    assert decode(type(message), bytes.fromhex(golden)) == message


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a\x10", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_bytes_that_are_no_message_are_rejected_with_its_name(data: bytes) -> None:
    with pytest.raises(Rejected, match=r"not a busbar\.node\.v1\.InferenceWork"):
        decode(InferenceWork, data)


def test_fields_of_a_newer_release_survive_a_reader_of_this_one() -> None:
    newer = InferenceWork(request_id=REQUEST_ID).SerializeToString() + bytes.fromhex("fa0703616263")

    read = decode(InferenceWork, newer)

    assert read.request_id == REQUEST_ID
    assert read.SerializeToString() == newer
