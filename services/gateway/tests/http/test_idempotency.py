"""One Idempotency-Key, one answer, one charge."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from busbar_gateway.adapters.http import idempotency
from busbar_gateway.adapters.http.idempotency import KEPT_BYTES_MAX
from busbar_gateway.adapters.idempotency_store import Found
from busbar_gateway.domain.answer_shares import KeptAnswers
from busbar_gateway.domain.failures import ModelFailed, Unavailable
from busbar_gateway.domain.idempotency import Entry, entry_name
from http_harness import RunningEdge
from stand_ins import NARROW_KEY, OTHER_KEY

INFER = "/v2/models/echo-fp32/infer"
CHAT = "/v1/chat/completions"
Until = Callable[..., None]


def tensor(value: float = 1.5) -> bytes:
    inputs = [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [value]}]
    return json.dumps({"inputs": inputs}).encode()


def chat(prompt: str, **options: Any) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": "chatty", "messages": messages, **options}).encode()


def post(
    edge: RunningEdge, path: str, body: bytes, key: str, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    return edge.request("POST", path, body, {"Idempotency-Key": key, **headers})


@pytest.fixture
def name() -> str:
    return uuid4().hex


@pytest.mark.parametrize(
    ("path", "body"),
    [(INFER, tensor()), (CHAT, chat("one two")), (CHAT, chat("one two", stream=True))],
    ids=["tensor", "chat", "stream"],
)
def test_the_same_request_again_gets_the_same_answer_and_is_served_once(
    edge: RunningEdge, name: str, path: str, body: bytes
) -> None:
    served = len(edge.serving.calls)
    first = post(edge, path, body, name)
    again = post(edge, path, body, name)

    assert first[0] == again[0] == 200
    assert first[2] == again[2]
    assert first[1]["x-request-id"] == again[1]["x-request-id"]
    assert "idempotent-replayed" not in first[1]
    assert again[1]["idempotent-replayed"] == "true"
    assert len(edge.serving.calls) == served + 1


def test_requests_at_the_same_time_join_the_one_in_flight(edge: RunningEdge, name: str) -> None:
    served = len(edge.serving.calls)
    body = chat("!late hello there", stream=True)
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: post(edge, CHAT, body, name), range(6)))

    assert {status for status, _, _ in answers} == {200}
    assert len({answer.replace(b": keep-alive\n\n", b"") for _, _, answer in answers}) == 1
    assert len(edge.serving.calls) == served + 1


def test_another_body_under_the_same_key_is_a_conflict(edge: RunningEdge, name: str) -> None:
    post(edge, INFER, tensor(1), name)

    status, headers, answer = post(edge, INFER, tensor(2), name)

    assert status == 409
    assert "another request" in json.loads(answer)["error"]
    assert headers["x-should-retry"] == "false"


def test_another_body_conflicts_while_the_first_is_in_flight(
    edge: RunningEdge, name: str, until: Until
) -> None:
    served = len(edge.serving.calls)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, edge, CHAT, chat("!late a"), name)
        until(lambda: len(edge.serving.calls) > served)
        status, _, answer = post(edge, CHAT, chat("b"), name)

        assert status == 409
        assert json.loads(answer)["error"]["code"] == "idempotency_key_reused"
        assert first.result()[0] == 200


def test_a_key_belongs_to_its_route(edge: RunningEdge, name: str) -> None:
    assert post(edge, INFER, tensor(), name)[0] == 200
    status, headers, _ = post(edge, "/v2/models/echo-fp64/infer", tensor(), name)

    assert status == 400  # its own validation, not a conflict and not the other's answer
    assert "idempotent-replayed" not in headers


@pytest.mark.parametrize("key", ["x" * 256, "a b", "gr\xfcn", "tab\there"])
def test_what_is_no_key_is_refused(edge: RunningEdge, key: str) -> None:
    status, _, answer = post(edge, INFER, tensor(), key)

    assert status == 400
    assert "Idempotency-Key" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (INFER, tensor(), {}),
        (CHAT, chat("one two"), {}),
        (CHAT, chat("one two", stream=True), {}),
        (CHAT, gzip.compress(chat("one two"), mtime=0), {"Content-Encoding": "gzip"}),
    ],
    ids=["tensor", "chat", "stream", "gzip"],
)
def test_a_kept_answer_is_refused_to_a_key_that_may_not_ask_for_it(
    edge: RunningEdge, name: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    assert post(edge, path, body, name, **headers)[0] == 200
    narrow = {**headers, "Authorization": f"Bearer {NARROW_KEY}"}
    status, answered, answer = post(edge, path, body, name, **narrow)

    assert status == 404
    assert "idempotent-replayed" not in answered
    assert b"there is no model" in answer
    assert post(edge, path, body, name, **headers)[1]["idempotent-replayed"] == "true"


def test_a_kept_answer_is_refused_while_the_tenant_is_suspended(
    edge: RunningEdge, name: str
) -> None:
    assert post(edge, CHAT, chat("one two"), name)[0] == 200
    edge.leave.suspended = "unpaid"
    refused = post(edge, CHAT, chat("one two"), name)
    edge.leave.suspended = ""
    resumed = post(edge, CHAT, chat("one two"), name)

    assert refused[0] == 403
    assert json.loads(refused[2])["error"]["message"] == "unpaid"
    assert resumed[1]["idempotent-replayed"] == "true"


def test_a_request_in_flight_is_not_joined_by_a_key_that_may_not_ask_for_it(
    edge: RunningEdge, name: str, until: Until
) -> None:
    served = len(edge.serving.calls)
    body = chat("!late a")
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, edge, CHAT, body, name)
        until(lambda: len(edge.serving.calls) > served)
        status, _, _ = post(edge, CHAT, body, name, Authorization=f"Bearer {NARROW_KEY}")

        assert status == 404
        assert first.result()[0] == 200


def test_a_failure_is_not_kept(edge: RunningEdge, name: str) -> None:
    edge.serving.failure = ModelFailed("not now")
    assert post(edge, INFER, tensor(), name)[0] == 500

    status, headers, _ = post(edge, INFER, tensor(), name)

    assert status == 200
    assert "idempotent-replayed" not in headers


def test_a_stream_that_broke_is_served_anew(edge: RunningEdge, name: str) -> None:
    served = len(edge.serving.calls)
    for _ in range(2):
        status, headers, answer = post(edge, CHAT, chat("!break", stream=True), name)
        assert (status, "idempotent-replayed" in headers) == (200, False)
        assert b'"error"' in answer

    assert len(edge.serving.calls) == served + 2


def test_a_client_that_left_finds_its_answer_later(
    edge: RunningEdge, name: str, until: Until
) -> None:
    body, served = chat("!late first second", stream=True), len(edge.serving.calls)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: busbar\r\nAuthorization: Bearer bb_the-key-of-the-tests\r\n"
        f"Idempotency-Key: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with edge.connect() as connection:
        connection.sendall(head.encode() + body)
        until(lambda: len(edge.serving.calls) > served)
    request_id = edge.serving.calls[-1].request_id.hex()
    until(lambda: edge.serving.ended[request_id].startswith("charged"))

    status, _, answer = post(edge, CHAT, body, name)

    assert status == 200
    assert b"second" in answer
    assert b"[DONE]" in answer
    assert len(edge.serving.calls) == served + 1


def test_an_answer_that_cannot_be_kept_is_not_charged(edge: RunningEdge, name: str) -> None:
    edge.store.failure = Unavailable("the bus is away")
    status, headers, _ = post(edge, INFER, tensor(), name)

    assert status == 503
    assert "retry-after" in headers
    assert edge.serving.ended[edge.serving.calls[-1].request_id.hex()] == "taken back"
    assert post(edge, INFER, tensor(), name)[0] == 200


def test_a_key_whose_claim_was_taken_unheard_is_served_when_it_comes_again(
    edge: RunningEdge, name: str
) -> None:
    edge.store.unheard = {"claim"}
    assert post(edge, INFER, tensor(), name)[0] == 503
    status, headers, _ = post(edge, INFER, tensor(), name)

    assert status == 200
    assert "idempotent-replayed" not in headers


def test_an_answer_that_was_kept_unheard_is_given_and_charged(edge: RunningEdge, name: str) -> None:
    edge.store.unheard = {"keep"}
    first = post(edge, INFER, tensor(), name)
    ended = edge.serving.ended[edge.serving.calls[-1].request_id.hex()]
    again = post(edge, INFER, tensor(), name)

    assert (first[0], again[0], first[2]) == (200, 200, again[2])
    assert ended.startswith("charged")
    assert again[1]["idempotent-replayed"] == "true"


def test_a_failure_whose_key_could_not_be_freed_leaves_nobody_waiting(
    edge: RunningEdge, name: str
) -> None:
    edge.serving.failure = ModelFailed("not now")
    edge.store.unheard = {"forget"}
    assert post(edge, INFER, tensor(), name)[0] == 503

    assert post(edge, INFER, tensor(), name)[0] == 200


def test_a_claim_that_was_taken_unheard_is_given_up_for_other_gateways(
    edge: RunningEdge, name: str, until: Until
) -> None:
    edge.store.unheard = {"claim"}
    assert post(edge, INFER, tensor(), name)[0] == 503
    entry_key = entry_name("acme", INFER, name.encode())
    assert entry_key in edge.store.entries

    until(lambda: entry_key not in edge.store.entries)


def test_a_stream_whose_end_cannot_be_kept_is_not_charged(edge: RunningEdge, name: str) -> None:
    edge.store.failure = Unavailable("the bus is away")
    status, _, answer = post(edge, CHAT, chat("one two", stream=True), name)

    assert status == 200
    assert b'"error"' in answer
    assert edge.serving.ended[edge.serving.calls[-1].request_id.hex()] == "not charged"


def test_an_answer_too_large_to_keep_is_given_once(
    edge_with: Callable[..., RunningEdge], name: str
) -> None:
    edge = edge_with()
    body = chat("!flood", stream=True)
    status, _, answer = post(edge, CHAT, body, name)
    assert status == 200
    assert len(answer) > KEPT_BYTES_MAX

    status, _, answer = post(edge, CHAT, body, name)

    assert status == 409
    assert json.loads(answer)["error"]["code"] == "idempotent_answer_dropped"


def test_who_keeps_its_share_is_told_so_and_keeps_nobody_else_out(
    edge_with: Callable[..., RunningEdge], name: str
) -> None:
    edge = edge_with()
    edge.store.kept = KeptAnswers(10_000, 3600)
    assert post(edge, CHAT, chat("one two"), name)[0] == 200
    edge.store.kept.add("acme", 5_000, time.time())
    served = len(edge.serving.calls)

    status, headers, answer = post(edge, CHAT, chat("one two"), name + "-new")

    assert status == 429
    assert json.loads(answer)["error"]["code"] == "idempotency_share_spent"
    assert headers["x-should-retry"] == "false"
    assert 3600 < int(headers["retry-after"]) <= 7200
    assert len(edge.serving.calls) == served
    assert post(edge, CHAT, chat("one two"), name)[1]["idempotent-replayed"] == "true"
    assert edge.request("POST", CHAT, chat("one two"))[0] == 200
    for _ in range(2):
        other = {"Authorization": f"Bearer {OTHER_KEY}"}
        status, headers, _ = post(edge, CHAT, chat("one two"), name + "-new", **other)
    assert (status, headers["idempotent-replayed"]) == (200, "true")


def test_an_answer_that_its_tenant_has_no_room_for_is_given_once(
    edge_with: Callable[..., RunningEdge], name: str
) -> None:
    edge = edge_with()
    edge.store.kept = KeptAnswers(100, 3600)
    first, again = [post(edge, CHAT, chat("one two"), name) for _ in range(2)]

    assert (first[0], again[0]) == (200, 409)
    assert json.loads(again[2])["error"]["code"] == "idempotent_answer_dropped"


def test_one_tenants_running_requests_leave_room_for_anothers(
    edge: RunningEdge, name: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RUNNING_MAX", 4)
    served = len(edge.serving.calls)
    with ThreadPoolExecutor(3) as clients:
        mine = [
            clients.submit(post, edge, CHAT, chat("!late a"), f"{name}-{number}")
            for number in range(2)
        ]
        until(lambda: len(edge.serving.calls) == served + 2)
        refused = post(edge, CHAT, chat("a"), name)
        other = post(edge, CHAT, chat("a"), name, Authorization=f"Bearer {OTHER_KEY}")

        assert refused[0] == 429
        assert json.loads(refused[2])["error"]["code"] == "rate_limit_exceeded"
        assert other[0] == 200
        assert [answer.result()[0] for answer in mine] == [200, 200]
    assert post(edge, CHAT, chat("a"), name)[0] == 200


@pytest.mark.parametrize(("run_id", "served_anew"), [("run-1", 1), ("run-9", 0)])
def test_a_request_of_a_gateway_that_ended_is_served_anew_and_a_living_ones_is_awaited(
    edge_with: Callable[..., RunningEdge], name: str, run_id: str, served_anew: int
) -> None:
    edge = edge_with(generation_timeout_s=0.3)
    assert post(edge, INFER, tensor(), name)[0] == 200
    [(entry_key, found)] = edge.store.entries.items()
    assert entry_key == entry_name("acme", INFER, name.encode())
    running = Entry(found.entry.fingerprint, "g7", run_id, b"\0" * 16, time.time() + 60)
    edge.store.entries[entry_key] = Found(running, found.revision)
    served = len(edge.serving.calls)

    status, _, _ = post(edge, INFER, tensor(), name)

    assert status == (200 if served_anew else 503)
    assert len(edge.serving.calls) == served + served_anew


def test_reading_needs_no_key_and_ignores_one(edge: RunningEdge, name: str) -> None:
    status, headers, _ = edge.request("GET", "/v1/models", b"", {"Idempotency-Key": name})

    assert status == 200
    assert "idempotent-replayed" not in headers


def test_the_document_names_the_header(edge: RunningEdge) -> None:
    _, _, answer = edge.request("GET", "/openapi.json")
    operation = json.loads(answer)["paths"][CHAT]["post"]

    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key"]
    assert "409" in operation["responses"]
