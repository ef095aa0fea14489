"""Whose word is taken for a bundle, and for code in one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from busbar_contracts.scheduler.v1.bundle_pb2 import BundleSeal, SealedBundle
from busbar_errors import Rejected
from busbar_messaging.bundles.approval import backend_of, code_in
from busbar_messaging.bundles.contents import digest_of
from busbar_messaging.bundles.sealing import SEALS_MAX, SigningKey, TrustedKeys
from busbar_messaging.bundles.settings import BundleKeySettings
from pydantic import SecretStr, ValidationError

CONTENTS = b"contents of a bundle"
PUBLISHER, APPROVER, STRANGER = (SigningKey.make() for _ in range(3))
TRUSTED = TrustedKeys.of([PUBLISHER.public], [APPROVER.public])


def sealed(*seals: BundleSeal, contents: bytes = CONTENTS) -> SealedBundle:
    return SealedBundle(contents=contents, seals=seals)


@pytest.mark.parametrize(
    ("key", "approves_code"),
    [(PUBLISHER, False), (APPROVER, False), (APPROVER, True)],
    ids=["publisher", "approver", "approved"],
)
def test_a_seal_of_a_trusted_key_counts(key: SigningKey, approves_code: bool) -> None:
    opened = TRUSTED.opened(
        sealed(key.seal(CONTENTS, approves_code=approves_code)), digest_of(CONTENTS)
    )

    assert opened is approves_code


def test_one_good_seal_among_others_is_enough() -> None:
    seals = [
        STRANGER.seal(CONTENTS, approves_code=True),
        PUBLISHER.seal(CONTENTS, approves_code=False),
    ]

    assert TRUSTED.opened(sealed(*seals), digest_of(CONTENTS)) is False


def forged() -> BundleSeal:
    """A publisher's seal over data, passed off as one over code by an approver."""
    seal = APPROVER.seal(CONTENTS, approves_code=False)
    seal.approves_code = True
    return seal


def borrowed() -> BundleSeal:
    """An approver's key beside a stranger's signature."""
    seal = STRANGER.seal(CONTENTS, approves_code=True)
    seal.public_key = bytes.fromhex(APPROVER.public)
    return seal


@pytest.mark.parametrize(
    ("seals", "reason"),
    [
        ([], "nobody sealed it"),
        ([STRANGER.seal(CONTENTS, approves_code=False)], "no key that is trusted"),
        ([PUBLISHER.seal(CONTENTS, approves_code=True)], "may publish bundles but not approve"),
        ([APPROVER.seal(b"other contents", approves_code=True)], "its seal is broken"),
        ([forged()], "its seal is broken"),
        ([borrowed()], "its seal is broken"),
        ([BundleSeal(public_key=bytes.fromhex(APPROVER.public))], "its seal is broken"),
        ([BundleSeal()] * (SEALS_MAX + 1), "more than 16 seals"),
    ],
)
def test_any_other_seal_does_not(seals: list[BundleSeal], reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        TRUSTED.opened(sealed(*seals), digest_of(CONTENTS))


def test_other_contents_do_not_pass_for_what_was_asked_for() -> None:
    other = b"other contents"

    with pytest.raises(Rejected, match="another digest"):
        TRUSTED.opened(
            sealed(APPROVER.seal(other, approves_code=True), contents=other), digest_of(CONTENTS)
        )


def test_without_trusted_keys_nothing_counts_and_it_says_what_to_set() -> None:
    with pytest.raises(Rejected, match="BUSBAR_BUNDLE_APPROVERS"):
        TrustedKeys.of([], []).opened(
            sealed(APPROVER.seal(CONTENTS, approves_code=True)), digest_of(CONTENTS)
        )


def test_a_key_is_read_back_from_its_file() -> None:
    assert SigningKey.from_pem(APPROVER.pem()).public == APPROVER.public


def test_a_key_that_openssl_made_is_read(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(file)], check=True, timeout=10
    )
    key = SigningKey.from_pem(file.read_bytes())

    assert TrustedKeys.of([], [key.public]).opened(
        sealed(key.seal(CONTENTS, approves_code=True)), digest_of(CONTENTS)
    )


@pytest.mark.parametrize(
    "pem", [b"", b"-----BEGIN PRIVATE KEY-----", b"\xff"], ids=["empty", "cut", "garbage"]
)
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(Rejected, match="not a private key"):
        SigningKey.from_pem(pem)


@pytest.mark.parametrize("key", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33])
def test_a_setting_that_names_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        BundleKeySettings(
            nats_url="", nats_user="", nats_password=SecretStr(""), bundle_approvers=[key]
        )


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("1/model.onnx", b"\x08\x09\x12\x07pytorch"),
        ("1/model.safetensors", b"\x60\0\0\0\0\0\0\0{"),
        ("1/vocab.txt", b"[PAD]\n"),
        ("1/LICENSE", b"Apache"),
        ("1/empty.txt", b""),
        ("1/model.BIN", b"\0\0\0\0"),
    ],
)
def test_data_needs_no_approval(path: str, head: bytes) -> None:
    assert code_in("onnxruntime", (), {path: head}) == ""


@pytest.mark.parametrize(
    ("path", "head", "reason"),
    [
        ("1/model.pkl", b"", "not known to be data"),
        ("1/model.bin", b"\x80\x04\x95", "a pickle"),
        ("1/model.onnx", b"\x80\x02}q", "a pickle"),
        ("1/weights.bin", b"PK\x03\x04", "a zip archive"),
        ("1/model.pt", b"", "not known to be data"),
        ("1/model.py", b"import os", "not known to be data"),
        ("libtriton_onnxruntime.so", b"", "not known to be data"),
        ("1/data.bin", b"\x7fELF\x02", "a library"),
        ("1/run.txt", b"#!/bin/sh", "a script"),
        ("1/py", b"", "not known to be data"),
    ],
)
def test_a_file_that_may_be_code_needs_approval(path: str, head: bytes, reason: str) -> None:
    assert reason in code_in("onnxruntime", (), {"1/model.onnx": b"\x08", path: head})


@pytest.mark.parametrize(
    "backend", ["python", "vllm", "pytorch", "tensorrt", "tensorflow", "my_own", "", "ensemble"]
)
def test_a_backend_that_runs_what_it_is_given_needs_approval(backend: str) -> None:
    assert "runs what the bundle brings" in code_in(backend, (), {})


def test_a_library_that_is_loaded_with_the_model_needs_approval() -> None:
    assert "libcustom.so" in code_in("onnxruntime", ("libcustom.so",), {})


def test_the_old_way_to_name_a_backend_counts() -> None:
    assert backend_of("", "onnxruntime_onnx") == "onnxruntime"
    assert backend_of("python", "onnxruntime_onnx") == "python"
