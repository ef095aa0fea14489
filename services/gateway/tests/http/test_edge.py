"""What holds for every HTTP request: credentials, bounds, identity, the document."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from raw_http import read_answer

REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
SIMPLE = {
    "inputs": [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "data": [1] * 16}
        for name in ("INPUT0", "INPUT1")
    ]
}
ANYWHERE = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/chatty"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v2"),
    ("GET", "/v2/models/simple"),
    ("GET", "/v2/models/simple/ready"),
    ("GET", "/v2/models/simple/config"),
    ("POST", "/v2/models/simple/infer"),
    ("POST", "/v2/models/simple/versions/1/infer"),
    ("POST", "/v2/repository/index"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/v1/nothing"),
    ("GET", "/v2/nothing"),
    ("DELETE", "/v1/models"),
    ("GET", "//v1/models"),
    ("GET", "/v2/health/live/"),
]
BAD_CREDENTIALS = [
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    "Basic YTpi",
    "Bearer bb_the-key-of-the-tests extra",
    "Bearer ' OR '1'='1' --",
    "Bearer \xff\xfe",
    "Bearer " + "x" * 5000,
]


@pytest.mark.parametrize(("method", "path"), ANYWHERE)
@pytest.mark.parametrize("credentials", ["", "Bearer wrong"])
def test_nothing_answers_without_credentials(
    edge: Any, method: str, path: str, credentials: str
) -> None:
    status, headers, body = edge.request(method, path, headers={"Authorization": credentials})

    assert status == 401
    assert headers["www-authenticate"].startswith("bearer")
    assert REQUEST_ID.fullmatch(headers["x-request-id"])
    error = json.loads(body)["error"]
    assert isinstance(error, str) == path.startswith("/v2")


@pytest.mark.parametrize("credentials", BAD_CREDENTIALS)
def test_keys_that_are_none_are_refused(edge: Any, credentials: str) -> None:
    status, _, body = edge.request("GET", "/v1/models", headers={"Authorization": credentials})

    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v2/models/simple/infer", 405),
        ("TRACE", "/v2", 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_unknown_addresses_and_methods_have_the_familys_shape(
    edge: Any, method: str, path: str, expected: int
) -> None:
    status, headers, body = edge.request(method, path)

    assert status == expected
    assert REQUEST_ID.fullmatch(headers["x-request-id"])
    assert ("allow" in headers) == (expected == 405)
    assert isinstance(json.loads(body)["error"], str) == path.startswith("/v2")


def test_head_is_get_without_a_body(edge: Any) -> None:
    status, headers, body = edge.request("HEAD", "/v1/models")

    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_every_request_has_an_id_of_its_own(edge: Any) -> None:
    ids = {edge.request("GET", "/v2/health/live")[1]["x-request-id"] for _ in range(3)}

    assert len(ids) == 3
    assert all(REQUEST_ID.fullmatch(name) for name in ids)


def test_what_the_client_says_about_the_trace_is_passed_on(edge: Any) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = json.dumps({"model": "embedder", "input": "a"}).encode()
    edge.request("POST", "/v1/embeddings", body, {"traceparent": parent})
    call = edge.serving.calls[-1]

    assert call.traceparent == parent
    assert call.caller.tenant_id == "acme"
    assert 0 < call.deadline - time.monotonic() <= 60


# --- bodies ----------------------------------------------------------------------------------


def test_a_body_announced_too_large_is_refused_before_it_is_sent(edge: Any, key: str) -> None:
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        connection.sendall(
            f"{head}Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n".encode()
        )
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"x-request-id: req_" in answer


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_too_large_a_body_reads_why(edge: Any, key: str, chunked: bool) -> None:
    body = b"x" * 4_000_000
    head = (
        f"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {key}\r\n"
    )
    if chunked:
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        head += "Transfer-Encoding: chunked\r\n\r\n"
    else:
        framed = body
        head += f"Content-Length: {len(body)}\r\n\r\n"
    with edge.connect() as connection:
        connection.sendall(head.encode() + framed)
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'{"error":' in answer


def test_the_connection_lives_on_after_a_refused_body(edge: Any, key: str) -> None:
    body = b"x" * 300_000
    head = f"Host: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        post = f"POST /v1/embeddings HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall(post.encode() + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        connection.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode())

        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_trickles_is_timed_out(edge: Any, key: str) -> None:
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
        answer = trickle(connection, b"x")

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_reads_does_not_hold_the_connection(edge_with: Any, key: str) -> None:
    edge = edge_with(linger_timeout_s=0.3)
    head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")

        assert trickle(connection, b"x") == b""


def test_a_body_cut_off_reaches_no_model(edge: Any, key: str) -> None:
    before = len(edge.serving.calls)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b'{"model":')
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            connection.recv(65536)

    assert edge.request("GET", "/v2/health/live")[0] == 200
    assert len(edge.serving.calls) == before


# --- heads and connections -------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/models/simple/infer"])
@pytest.mark.parametrize(
    "chunks",
    [b"XYZ\r\nabc\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"\r\n"],
    ids=["no length", "negative length", "longer than its length", "nothing"],
)
def test_malformed_chunks_are_refused_in_the_routes_own_shape(
    edge: Any, key: str, path: str, chunks: bytes
) -> None:
    before = len(edge.serving.calls)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks)
        status, headers, body = read_answer(connection)

    assert (status, headers["connection"]) == (400, "close")
    assert REQUEST_ID.fullmatch(headers["x-request-id"])
    error = json.loads(body)["error"]
    assert "chunks" in (error if path.startswith("/v2") else error["message"])
    assert len(edge.serving.calls) == before


def test_malformed_chunks_do_not_cost_the_request_before_its_answer(edge: Any, key: str) -> None:
    head = f"Host: x\r\nAuthorization: Bearer {key}\r\n"
    good = f"GET /v1/models HTTP/1.1\r\n{head}\r\n"
    bad = f"POST /v1/embeddings HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\nXYZ\r\n"
    with edge.connect() as connection:
        connection.sendall((good + bad).encode())
        status, _, rest = read_answer(connection)

    assert status == 200
    assert b"HTTP/1.1 400 " in rest


def test_ten_thousand_headers_are_refused(edge: Any) -> None:
    lines = "".join(f"X-{n}: a\r\n" for n in range(10_000))
    request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()
    status, headers, body = edge.talk(request)

    assert status == 431
    assert REQUEST_ID.fullmatch(headers["x-request-id"])
    assert "headers" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"x" * 100_000,
    ],
)
def test_heads_beyond_the_limit_are_refused(edge: Any, head: bytes) -> None:
    assert edge.talk(head)[0] == 431


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/models/simple/infer", "/v2/health/live"])
@pytest.mark.parametrize(
    "name", ["Authorization", "Idempotency-Key", "inference-header-content-LENGTH"]
)
def test_a_header_that_may_not_come_twice_is_refused(
    edge: Any, key: str, path: str, name: str
) -> None:
    before = len(edge.serving.calls)
    value = f"Bearer {key}" if name == "Authorization" else "1"
    twice = f"{name}: {value}\r\nAccept: a\r\n{name.lower()}: {value}\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n{twice}\r\n"
    )
    with edge.connect() as connection:
        connection.sendall(head.encode())
        status, _, body = read_answer(connection)

    assert status == 400
    error = json.loads(body)["error"]
    said = error if path.startswith("/v2") else error["message"]
    assert said == f"the header {name.lower()} was sent more than once; send it once"
    assert len(edge.serving.calls) == before


@pytest.mark.parametrize("in_the_head", [False, True])
def test_what_follows_the_body_is_no_header(edge: Any, key: str, in_the_head: bool) -> None:
    credentials = f"Authorization: Bearer {key}\r\n"
    head = "GET /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += "Connection: close\r\n" + (credentials if in_the_head else "")
    with edge.connect() as connection:
        connection.sendall(f"{head}\r\n0\r\n{credentials}\r\n".encode())
        status, _, _ = read_answer(connection)

    assert status == (200 if in_the_head else 401)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_bad_request(edge: Any, data: bytes) -> None:
    status, _, body = edge.talk(data)

    assert status in {400, 401}
    assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"\r\n"),
        (b"", b""),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", b"x"),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"),
    ],
)
def test_a_head_that_trickles_is_timed_out(edge: Any, start: bytes, piece: bytes) -> None:
    with edge.connect() as connection:
        connection.sendall(start)
        answer = trickle(connection, piece)

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_the_second_head_on_a_connection_is_timed_out_too(edge: Any) -> None:
    with edge.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nX-A: ")

        assert trickle(connection, b"x").startswith(b"HTTP/1.1 408 ")


def test_idle_connections_are_closed(edge_with: Any) -> None:
    edge = edge_with(keep_alive_s=1)
    with edge.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")

        assert connection.recv(65536) == b""


def test_an_answer_that_is_never_read_does_not_stay_in_memory(
    edge_with: Any, key: str, until: Callable[..., None]
) -> None:
    edge = edge_with(keep_alive_s=1, max_connections=1, max_body_bytes=7_000_000)
    with edge.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tensor = json.dumps(
            {
                "inputs": [
                    {
                        "name": "INPUT0",
                        "shape": [6_000_000],
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": 6_000_000},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        head = (
            f"POST /v2/models/large/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            f"Inference-Header-Content-Length: {len(tensor)}\r\n"
            f"Content-Length: {len(tensor) + 6_000_000}\r\n\r\n"
        )
        connection.sendall(head.encode() + tensor + bytes(6_000_000))
        until(lambda: "charged" in edge.serving.ended.values())
        until(lambda: edge.request("GET", "/v2/health/live")[0] == 200)

        assert connection.recv(64).startswith(b"HTTP/1.1 200 ")  # what had left before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/simple/infer", SIMPLE),
        ("/v1/embeddings", {"model": "embedder", "input": "a"}),
        ("/v1/completions", {"model": "chatty", "prompt": "a b"}),
        ("/v1/completions", {"model": "chatty", "prompt": "a b", "stream": True}),
    ],
    ids=["tensors", "embeddings", "whole", "stream"],
)
def test_each_way_of_answering_says_when_its_last_byte_leaves(
    edge: Any, path: str, body: dict[str, Any]
) -> None:
    """From then on a gateway that is killed leaves the charge as it is."""
    status, _, _ = edge.request("POST", path, json.dumps(body).encode())
    name = edge.serving.calls[-1].request_id.hex()

    assert status == 200
    assert [who for who, _ in edge.serving.handed_over].count(name) == 1


def test_connections_beyond_the_limit_are_turned_away(
    edge_with: Any, until: Callable[..., None]
) -> None:
    edge = edge_with(max_connections=3, head_timeout_s=5)
    with contextlib.ExitStack() as held:
        for _ in range(3):
            connection = held.enter_context(edge.connect())
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert edge.talk(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")[0] in {503, 0}
        with edge.connect() as refused:
            assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
    until(lambda: edge.request("GET", "/v2/health/live")[0] == 200)


def test_a_pipelined_head_waits_for_the_answer_before_it(edge: Any, key: str) -> None:
    body = json.dumps({"model": "chatty", "prompt": "!late !late"}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    first = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with edge.connect() as connection:
        connection.sendall(first + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n")
        answer = connection.recv(65536)
        connection.sendall(b"Connection: close\r\n\r\n")
        rest = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"!late" in answer
    assert rest.startswith(b"HTTP/1.1 200 ")


def test_an_upgrade_is_not_offered_and_harms_nothing(edge: Any) -> None:
    status, _, _ = edge.request(
        "GET", "/v1/models", headers={"Connection": "Upgrade, close", "Upgrade": "h2c"}
    )

    assert status == 200


# --- the document ----------------------------------------------------------------------------


def test_the_document_is_public_and_names_every_address(edge: Any) -> None:
    status, _, body = edge.request("GET", "/openapi.json", headers={"Authorization": ""})
    document = json.loads(body)

    assert status == 200
    assert document["openapi"] == "3.1.0"
    assert {"/v1/chat/completions", "/v2/models/{model}/infer", "/v2/health/live"} <= set(
        document["paths"]
    )
    for path in document["paths"].values():
        for method, operation in path.items():
            if method in {"get", "post"}:
                assert operation["responses"]


def trickle(connection: socket.socket, piece: bytes) -> bytes:
    """Send `piece` again and again until an answer or the end comes; return what came."""
    connection.settimeout(0.05)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with contextlib.suppress(ConnectionError):
                connection.sendall(piece)
            return connection.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    raise AssertionError("the connection was held open")
