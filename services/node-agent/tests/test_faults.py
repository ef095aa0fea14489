"""Triton dies, hangs or is lost; the agent is stopped or killed; the bus goes away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from busbar_contracts.node.v1 import events_pb2, status_pb2, work_pb2
from busbar_messaging import topology
from busbar_node_agent.adapters import outputs

from .node_bench import NodeBench, poll, repeat, slow_echo

SLOTS = 4


@pytest.fixture(autouse=True)
async def placed(node: NodeBench) -> None:
    if node.process is None or node.process.poll() is not None:
        node.start_agent()
    await _placed(node)


async def _placed(node: NodeBench, edit: Callable[[dict[str, bytes]], None] | None = None) -> None:
    """Have slow-echo there, `edit`ed, and nothing else."""
    digest = await node.push("slow-echo", edit)
    await node.place({"slow-echo": (digest, SLOTS)})
    await node.replica("slow-echo", status_pb2.REPLICA_STATE_READY, digest=digest)


async def _restarted(node: NodeBench, before: int, within_s: float = 30.0) -> None:
    """Wait until Triton was restarted once more and the model is ready again."""

    async def reached() -> bool:
        return (await node.status()).triton_restarts > before

    await poll(reached, within_s)
    await node.replica("slow-echo", status_pb2.REPLICA_STATE_READY, within_s=within_s)


async def test_a_killed_triton_hands_its_work_back_and_comes_back(node: NodeBench) -> None:
    killed, restarts = node.triton_pid, (await node.status()).triton_restarts
    sent = [
        await node.send("slow-echo", slow_echo(delay_ms=20_000), engine_losses=losses)
        for losses in (0, 1)
    ]
    for each in sent:
        await each.until("started")
    began_s = time.monotonic()

    os.kill(killed, signal.SIGKILL)
    frames = [await each.last() for each in sent]
    handed_back_s = time.monotonic() - began_s
    await _restarted(node, restarts)
    after = await node.send("slow-echo", slow_echo())

    assert {frame.failed.kind for frame in frames} == {work_pb2.FAILURE_KIND_ENGINE_LOST}
    assert handed_back_s < 1.0
    assert (await after.last()).WhichOneof("frame") == "finished"
    letters = topology.dead_letter_subject("node", "work")
    buried = await node.client.jetstream().get_last_msg(topology.DLQ.name, letters)
    assert buried.data is not None
    work = work_pb2.InferenceWork.FromString(buried.data)
    assert work.request_id == sent[1].request_id, "what two Tritons died of is kept"
    assert node.triton_pid != killed


async def test_the_fleet_is_told_that_a_triton_was_lost(node: NodeBench) -> None:
    subject = topology.event_subject("node", "triton_lost")
    restarts = (await node.status()).triton_restarts
    heard = await node.client.subscribe(subject)
    await node.client.flush()
    os.kill(node.triton_pid, signal.SIGKILL)
    told = events_pb2.TritonLost.FromString((await heard.next_msg(timeout=30)).data)
    await heard.unsubscribe()
    await _restarted(node, restarts)

    assert told.node == node.node.key
    assert told.reason == "exited with signal 9"


async def test_a_dead_tritons_shared_memory_is_swept(node: NodeBench) -> None:
    started = node.log_lines("triton started")[-1]
    regions = f"busbar_triton_{started['grpc_port']}_*"
    before = list(Path("/dev/shm").glob(regions))
    restarts = (await node.status()).triton_restarts
    os.kill(node.triton_pid, signal.SIGKILL)

    async def swept() -> bool:
        return not list(Path("/dev/shm").glob(regions))

    await poll(swept, 10.0)
    await _restarted(node, restarts)

    assert before


async def test_a_hung_triton_is_noticed_within_five_seconds_and_replaced(node: NodeBench) -> None:
    hung, restarts = node.triton_pid, (await node.status()).triton_restarts
    sent = await node.send("slow-echo", slow_echo(delay_ms=20_000))
    await sent.until("started")
    began_s = time.monotonic()

    os.kill(hung, signal.SIGSTOP)
    failed = (await sent.last()).failed
    noticed_s = time.monotonic() - began_s
    await _restarted(node, restarts)

    assert failed.kind == work_pb2.FAILURE_KIND_ENGINE_LOST
    assert noticed_s < 5.0
    assert node.triton_pid != hung
    assert not Path(f"/proc/{hung}").exists()


async def test_a_model_whose_process_alone_stands_still_is_a_hang(node: NodeBench) -> None:
    hung, restarts = node.triton_pid, (await node.status()).triton_restarts
    sent = await node.send("slow-echo", slow_echo(delay_ms=20_000))
    await sent.until("started")
    models = [one for one in psutil.Process(hung).children() if "stub" in one.name()]
    began_s = time.monotonic()

    models[-1].suspend()
    failed = (await sent.last()).failed
    noticed_s = time.monotonic() - began_s
    await _restarted(node, restarts)
    after = await node.send("slow-echo", slow_echo())

    assert failed.kind == work_pb2.FAILURE_KIND_ENGINE_LOST
    assert noticed_s < 5.0
    assert f"process {models[-1].pid} has stood still" in failed.reason
    assert (await after.last()).WhichOneof("frame") == "finished"


def _promising(files: dict[str, bytes]) -> None:
    """Its bundle says that it answers within a second."""
    files["busbar.yaml"] += b"answers_within_s: 1\n"


def _one_at_a_time(files: dict[str, bytes]) -> None:
    _promising(files)
    begun = b"threading.Thread(target=_serve, args=(request,), daemon=True).start()"
    assert begun in files["1/model.py"]
    files["1/model.py"] = files["1/model.py"].replace(begun, b"_serve(request)")


async def test_a_model_that_hangs_within_its_process_is_found_by_its_promise(
    node: NodeBench,
) -> None:
    await _placed(node, _one_at_a_time)
    hung, restarts = node.triton_pid, (await node.status()).triton_restarts
    began_s = time.monotonic()

    sent = await node.send("slow-echo", slow_echo(fault="hang"), deadline_s=60.0)
    failed = (await sent.last()).failed
    noticed_s = time.monotonic() - began_s
    await _restarted(node, restarts)
    after = await node.send("slow-echo", slow_echo())

    assert failed.kind == work_pb2.FAILURE_KIND_ENGINE_LOST
    assert "slow-echo hangs: silent for" in failed.reason
    assert noticed_s < 5.0
    assert node.triton_pid != hung
    assert (await after.last()).WhichOneof("frame") == "finished"


async def test_a_model_that_takes_longer_than_promised_and_answers_others_is_left_alone(
    node: NodeBench,
) -> None:
    digests = {name: await node.push(name, _promising) for name in ("slow-echo", "repeat")}
    await node.place({name: (digest, SLOTS) for name, digest in digests.items()})
    for name, digest in digests.items():
        await node.replica(name, status_pb2.REPLICA_STATE_READY, digest=digest)
    restarts = (await node.status()).triton_restarts

    long = await node.send("slow-echo", slow_echo(delay_ms=4_000))
    stream = await node.send("repeat", repeat(range(6), delay_ms=600), stream=True)

    assert (await long.last()).WhichOneof("frame") == "finished"
    assert (await stream.until("finished"))[0].finished.chunk_count == 6
    assert (await node.status()).triton_restarts == restarts


def _spoilt_by_work(files: dict[str, bytes]) -> None:
    """It answers nonsense once it has answered five requests, and is checked each five seconds."""
    files["busbar.yaml"] += b"  every_s: 5\n"
    files["1/model.py"] += b"""
_answered = []
_true_answer = _answer
def _answer(request, sender):
    _answered.append(1)
    answer = _true_answer(request, sender)
    if len(_answered) <= 6:  # the warm-up's among them
        return answer
    values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values + 77)])
"""


async def test_a_model_that_came_to_answer_nonsense_is_loaded_again(node: NodeBench) -> None:
    await _placed(node, _spoilt_by_work)
    answers = list[list[float]]()

    async def answers_rightly() -> bool:
        sent = await node.send("slow-echo", slow_echo(), deadline_s=10.0)
        frame = await sent.last()
        if frame.WhichOneof("frame") == "finished":
            tensors = outputs.tensors(frame.finished.payload)
            answers.append([float(one) for one in tensors["OUTPUT0"].data])
        return answers[-1:] == [[1.5, 2.5]]

    while await answers_rightly():
        continue
    await poll(answers_rightly, 20.0)
    replica = await node.replica("slow-echo", status_pb2.REPLICA_STATE_READY)

    assert answers[0] == answers[-1] == [1.5, 2.5]
    assert [78.5, 79.5] in answers
    assert replica.failed_count == 1


async def test_a_model_whose_process_dies_fails_its_requests_only(node: NodeBench) -> None:
    sent = await node.send("slow-echo", slow_echo(fault="crash"), deadline_s=2.0)

    failed = (await sent.last(within_s=30.0)).failed

    async def works_again() -> bool:
        again = await node.send("slow-echo", slow_echo(), deadline_s=5.0)
        return (await again.last()).WhichOneof("frame") == "finished"

    await poll(works_again, 40.0)
    assert failed.kind in {
        work_pb2.FAILURE_KIND_DEADLINE_EXCEEDED,  # Triton never answered
        work_pb2.FAILURE_KIND_UNAVAILABLE,  # or it had seen the process die
    }


def _kills_triton_while_it_loads(files: dict[str, bytes]) -> None:
    files["1/model.py"] = b"""
import os, signal
class TritonPythonModel:
    def initialize(self, _):
        os.kill(os.getppid(), signal.SIGKILL)
"""


async def test_work_in_hand_is_not_blamed_for_a_model_that_kills_triton_while_it_loads(
    node: NodeBench,
) -> None:
    """Requests are given up after their second Triton, and this may happen at several nodes."""
    good = await node.push("slow-echo")
    bad = await node.push("slow-echo", _kills_triton_while_it_loads)
    await node.place({"slow-echo": (good, SLOTS)})
    await node.ready("slow-echo")
    sent = await node.send("slow-echo", slow_echo(delay_ms=25_000))
    await sent.until("started")

    await node.place({"slow-echo": (good, SLOTS), "killer": (bad, 1)})
    failed = (await sent.last()).failed
    await node.replica("killer", status_pb2.REPLICA_STATE_FAILED, reason="Triton died")
    await node.place({"slow-echo": (good, SLOTS)})
    await node.ready("slow-echo")

    assert failed.kind == work_pb2.FAILURE_KIND_UNAVAILABLE
    assert "Triton was lost" in failed.reason


async def test_a_consumer_that_vanishes_is_pulled_from_again_once_it_is_back(
    node: NodeBench,
) -> None:
    spec = topology.work_consumer(node.node.region, "slow-echo")
    jetstream = node.client.jetstream()
    await jetstream.delete_consumer(spec.stream, spec.durable)
    sent = await node.send("slow-echo", slow_echo())

    await jetstream.add_consumer(spec.stream, spec.config())

    assert (await sent.last(within_s=5.0)).WhichOneof("frame") == "finished"


async def test_sigterm_finishes_what_is_in_hand_and_takes_nothing_new(node: NodeBench) -> None:
    sent = await node.send("slow-echo", slow_echo(delay_ms=1500))
    await sent.until("started")
    triton = node.triton_pid

    status = node.stop_agent()
    frame = await sent.last()
    left = await node.send("slow-echo", slow_echo())

    assert status == 0
    assert frame.WhichOneof("frame") == "finished"
    assert left.frames.empty()
    assert not (await node.lease()).ready
    assert (await node.status()).draining
    assert not Path(f"/proc/{triton}").exists()


async def test_a_killed_agent_leaves_no_process_of_its_triton_not_even_one_that_hangs(
    node: NodeBench,
) -> None:
    group = psutil.Process(node.triton_pid)
    models = [one for one in group.children() if "stub" in one.name()]
    for model in models:
        model.suspend()

    node.stop_agent(signal.SIGKILL)
    _, left = psutil.wait_procs([group, *models], timeout=10.0)

    assert models
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []


async def test_a_killed_agent_takes_its_triton_along_and_its_successor_cleans_up(
    node: NodeBench,
) -> None:
    triton = node.triton_pid
    regions = f"busbar_triton_{node.log_lines('triton started')[-1]['grpc_port']}_*"

    node.stop_agent(signal.SIGKILL)

    async def gone() -> bool:
        return not Path(f"/proc/{triton}").exists()

    await poll(gone, 10.0)
    node.start_agent()
    await node.ready("slow-echo")

    async def swept() -> bool:
        return not list(Path("/dev/shm").glob(regions))

    await poll(swept, 10.0)  # before its own Triton was started
    after = await node.send("slow-echo", slow_echo())
    assert (await after.last(within_s=10.0)).WhichOneof("frame") == "finished"
