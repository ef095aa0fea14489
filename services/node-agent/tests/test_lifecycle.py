"""Models come and go: fetched, verified, loaded, warmed up, drained, unloaded."""

from __future__ import annotations

import time
import urllib.request

import pytest
from busbar_contracts.node.v1 import status_pb2
from busbar_contracts.scheduler.v1.bundle_pb2 import SealedBundle
from harness.bundles import files_of, make
from tritonclient.grpc import service_pb2

from .node_bench import MODELS, NodeBench, poll, slow_echo

FAILED, READY = status_pb2.REPLICA_STATE_FAILED, status_pb2.REPLICA_STATE_READY
LOADING = status_pb2.REPLICA_STATE_LOADING


@pytest.fixture(autouse=True)
async def emptied(node: NodeBench) -> None:
    """Begin with nothing on the node."""
    await node.place({})

    async def empty() -> bool:
        return not (await node.status()).replicas

    await poll(empty, 60.0)


async def test_a_placed_model_becomes_ready_and_tells_what_it_is(node: NodeBench) -> None:
    await node.place({"simple": (await node.push("simple"), 3)})

    replica = await node.replica("simple", READY)

    metadata = service_pb2.ModelMetadataResponse.FromString(replica.model_metadata)
    config = service_pb2.ModelConfigResponse.FromString(replica.model_config)
    assert metadata.name == config.config.name == "simple"
    assert {tensor.name for tensor in metadata.inputs} == {"INPUT0", "INPUT1"}
    assert replica.slots == 3


async def test_one_bundle_serves_under_any_name(node: NodeBench) -> None:
    digest = await node.push("slow-echo")
    await node.place({"another-name": (digest, 2)})
    await node.ready("another-name")

    sent = await node.send("another-name", slow_echo(model="another-name"))

    assert (await sent.last()).WhichOneof("frame") == "finished"


async def test_a_wrong_warm_up_answer_keeps_a_model_from_working(node: NodeBench) -> None:
    def edit(files: dict[str, bytes]) -> None:
        text = files["busbar.yaml"].decode()
        files["busbar.yaml"] = text.replace("data: [1, 2, 3, 4", "data: [9, 2, 3, 4").encode()

    good, bad = await node.push("slow-echo"), await node.push("simple", edit)
    await node.place({"simple": (bad, 1), "slow-echo": (good, 1)})

    replica = await node.replica("simple", FAILED)
    await node.ready("slow-echo")

    assert replica.reason == "warm-up answered wrongly: OUTPUT0 [0] is 1, expected 9 within 0"


async def test_a_model_that_does_not_load_says_why_and_disturbs_no_other(node: NodeBench) -> None:
    def edit(files: dict[str, bytes]) -> None:
        files["1/model.py"] = b"import no_such_module\n"

    good, bad = await node.push("slow-echo"), await node.push("simple", edit)
    await node.place({"simple": (bad, 1), "slow-echo": (good, 1)})

    replica = await node.replica("simple", FAILED)
    await node.ready("slow-echo")

    async def failed_again() -> bool:
        (seen,) = [one for one in (await node.status()).replicas if one.deployment == "simple"]
        return seen.failed_count > replica.failed_count > 0

    assert replica.reason.count("No module named 'no_such_module'") == 1
    assert ";" not in replica.reason.splitlines()
    assert (replica.crashed_count, (await node.replica("slow-echo", READY)).failed_count) == (0, 0)
    await poll(failed_again, 20.0)


async def test_a_bundle_that_was_tampered_with_is_refused(node: NodeBench) -> None:
    made, other = (
        make({**files_of(MODELS / "simple"), "1/note": note}) for note in (b"unsealed", b"other")
    )
    digest = make({**files_of(MODELS / "simple"), "1/note": b"replaced"}).digest
    await node.store.put_bundle(digest, other.sealed)

    await node.place({"simple": (digest, 1), "unsealed": (made.digest, 1)})
    await node.store.put_bundle(made.digest, SealedBundle(contents=made.contents))
    replaced = await node.replica("simple", FAILED, reason="has another digest")
    unsealed = await node.replica("unsealed", FAILED, reason="nobody sealed it")

    assert replaced.reason.startswith(f"what was stored as {digest}")
    assert unsealed.reason.startswith(made.digest)


async def test_a_bundle_that_is_not_there_is_waited_for(node: NodeBench) -> None:
    made = make({**files_of(MODELS / "simple"), "1/note": b"not pushed before"})
    await node.place({"simple": (made.digest, 1)})
    await node.replica("simple", FAILED, reason="not in the model store")

    digest = await made.put(node.store)
    await node.ready("simple")

    assert digest == made.digest


async def test_a_path_out_of_the_bundle_is_refused(node: NodeBench) -> None:
    made = make({**files_of(MODELS / "simple"), "../../evil": b"x"})

    await node.place({"simple": (await made.put(node.store), 1)})
    replica = await node.replica("simple", FAILED)

    assert "no empty, . or .. parts" in replica.reason


async def test_a_deployment_whose_name_is_none_never_reaches_triton(node: NodeBench) -> None:
    digest = await node.push("simple")
    await node.place({"simple": (digest, 1)})
    await node.ready("simple")

    await node.place({"../simple": (digest, 1), "simple": (digest, 1)}, queues=["simple"])
    replica = await node.replica("../simple", FAILED)
    await node.place({"simple": (digest, 1)})
    await node.ready("simple")

    assert "is not a deployment's name" in replica.reason
    assert node.log_lines("replica not removed cleanly") == []


async def test_a_config_that_triton_refuses_is_said_and_disturbs_no_other(node: NodeBench) -> None:
    def edit(files: dict[str, bytes]) -> None:
        files["config.pbtxt"] += b"\ndynamic_batching { preferred_batch_size: [ 100 ] }\n"

    good, bad = await node.push("slow-echo"), await node.push("simple", edit)
    await node.place({"simple": (bad, 1), "slow-echo": (good, 1)})

    replica = await node.replica("simple", FAILED)
    await node.ready("slow-echo")

    assert "failed to load" in replica.reason
    assert "Triton says: " in replica.reason
    assert "preferred size must be <= max batch size for simple" in replica.reason


async def test_a_drained_model_hands_back_what_its_grace_does_not_suffice_for(
    node: NodeBench,
) -> None:
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")
    sent = await node.send("slow-echo", slow_echo(delay_ms=6000))
    await sent.until("started")
    handed_back = (await node.lease()).handed_back_count

    began = time.monotonic()
    await node.place({}, drain_within_ms=300)
    last = await sent.last()

    assert last.WhichOneof("frame") == "failed"
    assert "draining" in last.failed.reason
    assert 0.2 < time.monotonic() - began < 5

    async def counted() -> bool:
        return (await node.lease()).handed_back_count == handed_back + 1

    await poll(counted, 5, what=lambda: "the lease counts what was handed back")


async def test_a_withdrawn_model_finishes_its_work_first(node: NodeBench) -> None:
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")
    sent = await node.send("slow-echo", slow_echo(delay_ms=1500))
    await sent.until("started")

    await node.place({})
    last = await sent.last()

    assert last.WhichOneof("frame") == "finished"


async def test_a_model_is_not_loaded_before_what_it_replaces_has_left(node: NodeBench) -> None:
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")
    other = await node.push("simple")
    sent = await node.send("slow-echo", slow_echo(delay_ms=6000))
    await sent.until("started")

    await node.place({"simple": (other, 2)})
    await node.replica("simple", LOADING, reason="waiting for models that leave", within_s=5.5)
    there = {each.deployment: each.state for each in (await node.status()).replicas}
    last = await sent.last()
    await node.ready("simple")

    assert there["slow-echo"] == status_pb2.REPLICA_STATE_DRAINING
    assert last.WhichOneof("frame") == "finished"


async def test_a_new_bundle_replaces_the_old_one_after_its_work(node: NodeBench) -> None:
    def edit(files: dict[str, bytes]) -> None:
        files["1/model.py"] += b"\n# another version\n"

    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")
    sent = await node.send("slow-echo", slow_echo(delay_ms=800))
    await sent.until("started")

    digest = await node.push("slow-echo", edit)
    await node.place({"slow-echo": (digest, 2)})
    last = await sent.last()
    await node.replica("slow-echo", READY, digest=digest)
    after = await node.send("slow-echo", slow_echo())

    assert last.WhichOneof("frame") == "finished"
    assert (await after.last()).WhichOneof("frame") == "finished"


async def test_a_deposed_leaders_placement_is_ignored(node: NodeBench) -> None:
    ignored = "placement of a deposed leader ignored"
    before = len(node.log_lines(ignored))
    digest = await node.push("slow-echo")
    await node.place({"slow-echo": (digest, 2)}, token=7)
    await node.ready("slow-echo")

    await node.place({}, token=6)
    await node.place({"slow-echo": (digest, 3)}, token=7)

    async def adjusted() -> bool:
        return [each.slots for each in (await node.status()).replicas] == [3]

    await poll(adjusted, 10.0)
    assert len(node.log_lines(ignored)) == before + 1


async def test_the_agent_is_ready_once_it_knows_what_is_wanted(node: NodeBench) -> None:
    await poll(node.says_ready, 10.0)
    with urllib.request.urlopen(f"http://127.0.0.1:{node.ops_port}/metrics", timeout=2) as answer:
        metrics = answer.read().decode()

    assert "busbar_agent_triton_ready 1.0" in metrics
    lease = await node.lease()
    assert lease.ready
    assert (await node.status()).capacity.memory_mib == 2048


async def restarted(node: NodeBench) -> list[str]:
    """Replace the agent, and wait until it says that it is ready; why it was not meanwhile."""
    assert node.stop_agent() == 0
    node.start_agent()
    reasons = list[str]()

    async def ready() -> bool:
        reasons.extend(found := await node.unready())
        return not found

    await poll(ready, 60.0, what=lambda: str(reasons[-1:]))
    return reasons


def slow_to_load(files: dict[str, bytes]) -> None:
    """As a model of some size: five seconds until it is loaded."""
    begins = b"class TritonPythonModel:\n"
    slow = begins + b"    def initialize(self, args):\n        threading.Event().wait(5)\n\n"
    files["1/model.py"] = files["1/model.py"].replace(begins, slow)


async def test_a_restarted_agent_is_ready_once_what_it_held_serves_again(node: NodeBench) -> None:
    slow = await node.push("slow-echo", slow_to_load)
    await node.place({"slow-echo": (slow, 2), "simple": (await node.push("simple"), 1)})
    await node.ready("slow-echo", "simple")

    reasons = await restarted(node)
    states = {each.deployment: each.state for each in (await node.status()).replicas}
    await node.place({"slow-echo": (slow, 2), "again": (slow, 1)})
    await node.replica("again", LOADING)

    assert states == {"slow-echo": READY, "simple": READY}
    assert "slow-echo, which was here before, is loading" in reasons
    assert await node.unready() == [], "what is placed later does not take it back"


async def test_what_fails_to_load_keeps_no_agent_from_being_ready(node: NodeBench) -> None:
    def edit(files: dict[str, bytes]) -> None:
        files["1/model.py"] = b"import no_such_module\n"

    await node.place({"slow-echo": (await node.push("slow-echo", edit), 1)})
    await node.replica("slow-echo", FAILED)

    reasons = await restarted(node)
    (replica,) = (await node.status()).replicas

    assert replica.state != READY
    assert replica.failed_count >= 3
    assert [one for one in reasons if "slow-echo, which was here before, is failed" in one]
