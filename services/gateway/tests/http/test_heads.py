"""What a head must say, and may not, for its request to be served."""

from __future__ import annotations

import json
from typing import Any

import pytest
from raw_http import read_answer


def asked(edge: Any, key: str, lines: str, version: str, path: str) -> tuple[int, str, bytes]:
    """Return the status, the reason and the bytes after the answer."""
    head = f"GET {path} HTTP/{version}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}{lines}\r\n".encode("latin-1"))
        status, _, body = read_answer(connection)
    error = json.loads(body).get("error", "")
    return status, error if isinstance(error, str) else error["message"], body


@pytest.mark.parametrize("path", ["/v1/models", "/v2/models/simple", "/v2/health/live"])
@pytest.mark.parametrize(
    "lines",
    [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHOST: b\r\n",
        "Host: a b\r\n",
        "Host: http://a\r\n",
        "Host: a/b\r\n",
        "Host: me@a\r\n",
        "Host: a:80:80\r\n",
        "Host: a:b\r\n",
        "Host: %zz\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: \xe4\r\n",
    ],
)
def test_a_request_without_one_proper_host_is_refused(
    edge: Any, key: str, path: str, lines: str
) -> None:
    status, reason, _ = asked(edge, key, lines, "1.1", path)

    assert status == 400
    assert reason.startswith("the header host ")


@pytest.mark.parametrize(
    "host",
    ["a", "", "a:80", "a:", "127.0.0.1:8000", "[::1]:8000", "[fe80::1%25eth0]", "my_host", "%41.b"],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_any_host_with_or_without_a_port_is_served(
    edge: Any, key: str, host: str, version: str
) -> None:
    assert asked(edge, key, f"Host: {host}\r\n", version, "/v1/models")[0] == 200


def test_a_client_of_http_1_0_may_leave_its_host_out(edge: Any, key: str) -> None:
    assert asked(edge, key, "", "1.0", "/v1/models")[0] == 200
    assert asked(edge, key, "Host: a b\r\n", "1.0", "/v1/models")[0] == 400


def test_each_request_on_a_connection_says_its_host(edge: Any, key: str) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        for lines, status in [("Host: a\r\n", b"200"), ("", b"400"), ("Host: a\r\n", b"200")]:
            connection.sendall(f"{head}{lines}\r\n".encode())
            answer = connection.recv(65536)

            assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("path", ["/v1/models", "/v2/models/simple", "/v2/health/live"])
@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip,chunked", "identity, chunked", "gzip"])
def test_codings_of_the_transfer_that_are_not_undone_are_refused(
    edge: Any, key: str, path: str, coding: str
) -> None:
    lines = f"Host: a\r\nTransfer-Encoding: {coding}\r\n"
    status, reason, _ = asked(edge, key, lines, "1.1", path)

    assert status == 501
    assert "transfer-encoding" in reason


@pytest.mark.parametrize("second", ["chunked", "gzip"])
def test_the_coding_of_a_transfer_is_said_once(edge: Any, key: str, second: str) -> None:
    lines = f"Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: {second}\r\n"

    assert asked(edge, key, lines, "1.1", "/v1/models")[0] == 400


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "  chunked  "])
def test_chunks_are_known_however_they_are_spelt(edge: Any, key: str, coding: str) -> None:
    lines = f"Host: a\r\nTransfer-Encoding: {coding}\r\n"
    head = f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}{lines}\r\n0\r\n\r\n".encode())
        status, _, _ = read_answer(connection)

    assert status == 200
