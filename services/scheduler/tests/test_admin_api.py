"""The admin API: who may use it, what it takes, what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from busbar_contracts.scheduler.v1.bundle_pb2 import SealedBundle
from busbar_messaging.bundles.sealing import SigningKey
from busbar_messaging.bundles.store import BundleStore
from busbar_messaging.topology import MODELS
from harness.bundles import KEY, Made, make
from harness.polling import eventually
from scheduler_harness import (
    CONFIG,
    MANIFEST,
    PUBLISHER,
    Bus,
    FakeNode,
    Running,
    bundle,
    living,
    placement_of,
    refusal,
    scheduling,
)

NODE = "r1.s1.n1"


@asynccontextmanager
async def scheduler(bus: Bus) -> AsyncIterator[Running]:
    async with scheduling(bus) as running:
        yield running


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic an-operator-token-for-tests"},
        {b"Authorization": b"Bearer an-operator-token-for-test\xff"},
        {b"Authorization": b"Bearer an-operator-token-for-tests\tmore"},
    ],
)
async def test_nothing_opens_without_the_token(bus: Bus, headers: dict[Any, Any]) -> None:
    async with scheduler(bus) as running:
        base_url = str(running.api.base_url)
        async with httpx.AsyncClient(base_url=base_url, headers=headers, verify=False) as stranger:
            for method, path in (
                ("GET", "/admin/v1/deployments"),
                ("PUT", "/admin/v1/deployments/x"),
                ("PUT", "/admin/v1/bundles/x"),
                ("POST", "/admin/v1/chunks"),
                ("GET", "/openapi.json"),
                ("GET", "/"),
                ("GET", "/nowhere"),
            ):
                assert refusal(await stranger.request(method, path)) == 401


async def test_pushing_a_bundle_twice_stores_it_once(bus: Bus) -> None:
    made = bundle()
    path = f"/admin/v1/bundles/{made.digest}"
    async with scheduler(bus) as running:
        await running.send(made)
        first = await running.api.put(path, json=made.body)
        objects = await object_count(running)
        second = await running.api.put(path, json=made.body)
        objects_after = await object_count(running)
        listed = await running.get("/admin/v1/bundles")
        stored = await BundleStore(running.client).bundle(made.digest)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json() == listed["items"][0]
    assert first.json()["digest"] == made.digest
    assert (stored.contents, len(stored.seals)) == (made.contents, 1)
    assert objects == objects_after == 2 * (len(made.chunks) + 1)


async def test_pushing_all_of_a_bundle_again_mends_what_the_store_has_damaged(bus: Bus) -> None:
    made = bundle()
    damaged = SealedBundle(contents=made.contents[:-1] + b"?", seals=made.sealed.seals)
    async with scheduler(bus) as running:
        await running.push(made)
        store = BundleStore(running.client)
        objects = await running.client.jetstream().object_store(MODELS.name)
        for sha256, content in made.chunks.items():
            await objects.put(f"chunk-{sha256.hex()}", content[:-1] + b"?")
        await store.put_bundle(made.digest, damaged)
        await running.push(made)
        stored = await store.bundle(made.digest)
        chunks = {sha256: await store.chunk(sha256) for sha256 in made.chunks}

    assert stored == made.sealed
    assert chunks == made.chunks


async def object_count(running: Running) -> int:
    """Messages in the object store: content and description of each object."""
    return (await running.client.jetstream().stream_info("OBJ_models")).state.messages


async def test_only_chunks_that_are_missing_have_to_be_sent(bus: Bus) -> None:
    first, second = bundle("first"), bundle("second")
    path = "/admin/v1/chunks/missing"
    asked = {"sha256": [one.hex() for one in second.chunks]}
    async with scheduler(bus) as running:
        await running.push(first)
        missing = (await running.api.post(path, json=asked)).json()["sha256"]

    assert missing == [one.hex() for one in second.chunks if one not in first.chunks]
    assert len(missing) == 1 < len(second.chunks)


async def test_a_bundle_is_not_taken_while_a_chunk_is_missing(bus: Bus) -> None:
    made = bundle()
    async with scheduler(bus) as running:
        early = await running.api.put(f"/admin/v1/bundles/{made.digest}", json=made.body)
        before = await running.get("/admin/v1/bundles")
        late = await running.push(made)

    assert refusal(early, "3 of 3 chunks are missing") == 409
    assert before["items"] == []
    assert late["digest"] == made.digest


@pytest.mark.parametrize(
    ("sha256", "content", "status", "said"),
    [
        ("0" * 64, b"x", 422, "do not have the digest"),
        ("0" * 64, b"", 422, "do not have the digest"),
        ("../" + "0" * 61, b"x", 422, "sha256"),
        ("", b"x", 422, "sha256"),
        ("0" * 64, bytes(4 * 1024 * 1024 + 1), 413, "bytes at most"),
    ],
    ids=["wrong", "empty", "climbing", "nameless", "huge"],
)
async def test_a_bad_chunk_is_refused_and_leaves_nothing(
    bus: Bus, sha256: str, content: bytes, status: int, said: str
) -> None:
    async with scheduler(bus) as running:
        response = await running.api.post(f"/admin/v1/chunks?sha256={sha256}", content=content)
        objects = await object_count(running)

    assert refusal(response, said) == status
    assert objects == 0


async def test_a_chunk_of_unknown_length_is_bounded_while_it_arrives(bus: Bus) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1024 * 1024)

    path = f"/admin/v1/chunks?sha256={'0' * 64}"
    async with scheduler(bus) as running:
        response = await running.api.post(path, content=endless())

    assert refusal(response) == 413


def unsealed(made: Made) -> dict[str, Any]:
    return {"contents": made.body["contents"]}


def resealed(made: Made, **change: Any) -> dict[str, Any]:
    return {**made.body, "seal": {**made.body["seal"], **change}}


DATA_CONFIG = CONFIG.replace("python", "onnxruntime").encode()


def of_data(**more: bytes) -> Made:
    """A bundle without code, but for what is added."""
    manifest = MANIFEST.format(name="data", memory_mb=64).encode()
    files = {"busbar.yaml": manifest, "config.pbtxt": DATA_CONFIG, "1/model.onnx": b"\x08"}
    return make({**files, **more})


@pytest.mark.parametrize(
    ("made", "body", "said"),
    [
        (bundle("Bad/Name"), None, "is not a bundle's name"),
        (bundle(), {"contents": "AAAA"}, "seal"),
        (bundle(), {**bundle().body, "colour": "red"}, "colour"),
        (bundle(), {**bundle().body, "contents": "AAAA"}, "do not have the digest"),
        (bundle(), {**bundle().body, "contents": "?"}, "contents"),
        (bundle(), unsealed(bundle()), "seal"),
        (bundle(), resealed(bundle(), signature="0" * 128), "its seal is broken"),
        (bundle(), resealed(bundle(), approves_code=False), "its seal is broken"),
        (bundle(), resealed(bundle(), public_key="ab" * 32), "no key that is trusted"),
        (bundle().sealed_by(SigningKey.make()), None, "no key that is trusted"),
        (bundle().sealed_by(PUBLISHER), None, "may publish bundles but not approve code"),
        (bundle().sealed_by(PUBLISHER, approves_code=False), None, "push it with --approve"),
        (bundle().sealed_by(KEY, approves_code=False), None, "backend 'python' runs"),
        (
            of_data(**{"1/weights.bin": b"\x80\x04"}).sealed_by(PUBLISHER, approves_code=False),
            None,
            "1/weights.bin is a pickle",
        ),
        (of_data(**{"1/large.bin": bytes(4 * 1024 * 1024)}), None, "that a bundle may have"),
        (bundle().listing("1/model.py", {0: 4}), None, "1/model.py: the bundle lists 4 bytes"),
        (bundle().listing("1/model.py", {0: 6}), None, "which has 5 in the store"),
    ],
    ids=[
        *("name", "no-seal", "unknown", "other-contents", "no-base64", "unsealed", "no-signature"),
        *("code-approval-taken-off", "stranger", "strangers-seal", "publisher-approves"),
        *("publisher", "not-approved", "pickle", "too-large", "cut-short", "longer-than-it-is"),
    ],
)
async def test_a_bad_bundle_is_refused_and_changes_nothing(
    bus: Bus, made: Made, body: dict[str, Any] | None, said: str
) -> None:
    async with scheduler(bus) as running:
        await running.send(made)
        path = f"/admin/v1/bundles/{made.digest}"
        response = await running.api.put(path, json=body or made.body)
        listed = await running.get("/admin/v1/bundles")

    assert refusal(response, said) == 422
    assert listed["items"] == []


async def test_a_publisher_may_push_data_and_an_operator_approve_it_later(bus: Bus) -> None:
    made = of_data()
    async with scheduler(bus) as running:
        pushed = await running.push(made.sealed_by(PUBLISHER, approves_code=False))
        again = await running.push(made)
        stored = await BundleStore(running.client).bundle(made.digest)

    assert pushed == again
    assert {seal.public_key.hex() for seal in stored.seals} == {PUBLISHER.public, KEY.public}


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("Bad", {"bundle": "simple"}, 422),
        ("a" * 64, {"bundle": "simple"}, 422),
        ("m", {}, 422),
        ("m", {"bundle": ""}, 422),
        ("m", {"bundle": "simple", "replicas": -1}, 422),
        ("m", {"bundle": "simple", "replicas": 1001}, 422),
        ("m", {"bundle": "simple", "replicas": "1"}, 422),
        ("m", {"bundle": "simple", "replicas": True}, 422),
        ("m", {"bundle": "simple", "regions": ["r/1"]}, 422),
        ("m", {"bundle": "simple", "regions": "r1"}, 422),
        ("m", {"bundle": "simple", "tenants": ["a b"]}, 422),
        ("m", {"bundle": "simple", "scale_down_after_s": 0}, 422),
        ("m", {"bundle": "simple", "colour": "red"}, 422),
        ("m", {"bundle": "unheard-of"}, 404),
        ("m", {"bundle": "sha256:" + "0" * 64}, 404),
    ],
)
async def test_a_bad_deployment_is_refused_and_changes_nothing(
    bus: Bus, name: str, body: dict[str, Any], status: int
) -> None:
    async with scheduler(bus) as running:
        await running.push(bundle())
        response = await running.api.put(f"/admin/v1/deployments/{name}", json=body)
        listed = await running.get("/admin/v1/deployments")

    assert refusal(response) == status
    assert listed["items"] == []


async def test_broken_json_and_enormous_bodies_are_refused(bus: Bus) -> None:
    path = "/admin/v1/deployments/m"
    async with scheduler(bus) as running:
        broken = await running.api.put(path, content=b"{", headers={"Content-Type": "text/json"})
        huge = await running.api.put(path, content=bytes(2 * 1024 * 1024))
        missing = await running.api.get(path)
        gone = await running.api.delete(path)
        method = await running.api.patch(path)
        filtered = await running.api.get("/admin/v1/nodes", params={"site": "r1/s1"})

    assert refusal(filtered, "no query parameter 'site' here; there are: none") == 422
    assert refusal(broken) == 422
    assert refusal(huge) == 413
    assert refusal(missing, "no deployment is called 'm'") == 404
    assert refusal(gone) == 404
    assert refusal(method) == 405


async def test_what_can_never_fit_is_accepted_and_said_at_once(bus: Bus) -> None:
    async with scheduler(bus) as running, living(bus, NODE):
        await running.push(bundle("large", memory_mb=5000))
        await running.push(bundle("small"))
        large = await running.put("large", {"bundle": "large"})
        many = await running.put("many", {"bundle": "small", "replicas": 3})
        elsewhere = await running.put("elsewhere", {"bundle": "small", "regions": ["r9"]})
        none = await running.put("none", {"bundle": "small", "replicas": 0})

    assert (large["status"], many["status"], elsewhere["status"]) == ("unplaceable",) * 3
    assert "5000 MiB" in large["reason"]
    assert "only 1 could hold it" in many["reason"]
    assert elsewhere["reason"] == "no node in region r9"
    assert none["status"] == "stopped"


async def test_what_takes_over_and_can_never_fit_is_said_while_the_other_serves_on(
    bus: Bus,
) -> None:
    async with scheduler(bus) as running, living(bus, NODE) as node:
        large = await running.push(bundle(memory_mb=5000))
        small = await running.push(bundle())
        for one in (large, small):
            await running.put("m", {"bundle": one["digest"]})
        await served(running, node, small["digest"])
        back = (await running.api.post("/admin/v1/deployments/m/rollback", json={})).json()
        roomy = await running.push(bundle(memory_mb=65))
        other = await running.put("m", {"bundle": roomy["digest"]})

    taking_over = back["rollout"]["canary"]
    assert (back["bundle"], back["status"]) == (small["digest"], "ready")
    assert taking_over["bundle"] == large["digest"]
    assert "5000 MiB" in taking_over["never"]
    assert other["rollout"]["canary"]["never"] == ""


async def test_what_is_not_tried_again_says_so_until_it_is_asked_for(bus: Bus) -> None:
    path = "/admin/v1/deployments/m"
    async with scheduler(bus) as running, living(bus, NODE) as node:
        old, new = await running.push(bundle()), await running.push(bundle(memory_mb=65))
        first = await running.put("m", {"bundle": old["digest"]})
        await served(running, node, old["digest"])
        body = {"bundle": new["digest"], "rollout": {"ready_within_s": 1}}
        tried = await running.put("m", body)
        back = await eventually(
            lambda: running.get(path),
            within_s=15,
            what="it goes back",
            until=lambda view: view["rollout"]["rolled_back"] is not None,
        )
        same = await running.put("m", {**body, "replicas": 2})
        present = await running.put("m", {**body, "bundle": old["digest"]})
        again = await running.put("m", {**body, "again": True})

    assert back["rollout"]["rolled_back"]["reason"].startswith("not ready for 1 s")
    assert same["held_back"] == back["rollout"]["rolled_back"]["reason"]
    assert (same["bundle"], same["replicas"]) == (old["digest"], 2)
    assert [one["held_back"] for one in (first, tried, present, again)] == [""] * 4
    assert again["rollout"]["canary"]["phase"] == "observing"


async def served(running: Running, node: FakeNode, digest: str) -> None:
    """Have the node hold what it is told to, until `m` is served by this bundle."""

    async def look() -> dict[str, Any]:
        await node.serve(await placement_of(running.client, node.key))
        return await running.get("/admin/v1/deployments/m")

    await eventually(
        look,
        within_s=15,
        what="the deployment serves",
        until=lambda view: (view["bundle"], view["status"]) == (digest, "ready"),
    )


async def test_the_newest_bundle_of_a_name_is_taken_and_the_age_is_kept(bus: Bus) -> None:
    async with scheduler(bus) as running:
        old = await running.push(bundle(memory_mb=64))
        first = await running.put("m", {"bundle": "simple"})
        new = await running.push(bundle(memory_mb=65))
        second = await running.put("m", {"bundle": "simple", "replicas": 2})
        back = await running.put("m", {"bundle": old["digest"]})

    assert (first["bundle"], second["bundle"], back["bundle"]) == (
        old["digest"],
        new["digest"],
        old["digest"],
    )
    assert first["created_unix_ms"] == second["created_unix_ms"]


async def test_writers_that_race_all_succeed_and_one_is_last(bus: Bus) -> None:
    async with scheduler(bus) as running:
        await running.push(bundle())
        answers = await asyncio.gather(
            *[running.put("m", {"bundle": "simple", "replicas": at}) for at in range(1, 6)]
        )
        standing = await running.get("/admin/v1/deployments/m")

    assert len(answers) == 5
    assert standing["replicas"] in range(1, 6)


async def test_a_declaration_that_contradicts_itself_changes_nothing(bus: Bus) -> None:
    async with scheduler(bus) as running:
        await running.push(bundle())
        for body, said in (
            ({"regions": ["r1"], "pins": ["r2/s1"]}, "allowed in r1 only"),
            ({"replicas": 2, "pins": ["r1/s1/n1"]}, "pinned to 1 nodes"),
            ({"survives_site_loss": True, "pins": ["r1/s1"]}, "cannot survive the loss"),
            ({"replicas": 5, "max_replicas": 2}, "max_replicas allows 2"),
            ({"pins": ["r1"]}, "pins.0"),
            ({"per_site_max": -1}, "per_site_max"),
        ):
            path = "/admin/v1/deployments/simple"
            response = await running.api.put(path, json={"bundle": "simple", **body})
            assert refusal(response, said) == 422
        listed = await running.get("/admin/v1/deployments")

    assert listed["items"] == []


async def test_a_deployment_is_scaled_and_rolled_back(bus: Bus) -> None:
    path = "/admin/v1/deployments/simple"
    async with scheduler(bus) as running:
        first = await running.push(bundle())
        await running.put("simple", {"bundle": "simple", "survives_site_loss": True})
        nowhere = await running.api.post(f"{path}/rollback", json={})
        second = await running.push(bundle(memory_mb=65))
        await running.put("simple", {"bundle": second["digest"], "survives_site_loss": True})
        scaled = await running.api.post(f"{path}/scale", json={"replicas": 3, "max_replicas": 5})
        beyond = await running.api.post(f"{path}/scale", json={"replicas": 6})
        back = await running.api.post(f"{path}/rollback", json={})
        missing = await running.api.post("/admin/v1/deployments/x/scale", json={"replicas": 1})

    assert refusal(nowhere, "no other bundle") == 422
    assert refusal(beyond, "6 replicas are wanted, but max_replicas allows 5") == 422
    assert refusal(missing) == 404
    assert (scaled.json()["replicas"], scaled.json()["max_replicas"]) == (3, 5)
    assert scaled.json()["survives_site_loss"] is True
    view = back.json()
    assert (view["bundle"], view["previous_bundle"]) == (first["digest"], second["digest"])
    assert view["replicas"] == 3


async def test_the_document_says_what_each_operation_does(bus: Bus) -> None:
    async with scheduler(bus) as running:
        document = (await running.api.get("/openapi.json")).json()

    named = [
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, one in operations.items()
        if one["operationId"].startswith(one["summary"].lower().replace(" ", "_") + "_")
    ]

    assert len(document["paths"]) > 10
    assert named == []
