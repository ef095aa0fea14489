"""A node agent under test, and what a scheduler and a gateway would do to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from busbar_contracts.node.v1 import status_pb2, work_pb2
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_messaging import topology
from busbar_messaging.bundles.store import BundleStore
from busbar_messaging.topology import NodeId
from busbar_runtime.child import tethered
from harness.bundles import files_of, make
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KeyValue
from tritonclient.grpc import service_pb2

MODELS = Path(__file__).parents[3] / "deploy" / "demo" / "models"
READY_WITHIN_S = 60.0

_regions = itertools.count(1)
_FORMATS = {"FP32": "f", "INT32": "i", "UINT32": "I"}


class NatsServer(Protocol):
    """What the runtime's fixture gives."""

    def environment(self, user: str) -> dict[str, str]: ...


@dataclass(frozen=True)
class Tensor:
    datatype: str
    values: Sequence[Any]


def payload(model: str, inputs: Mapping[str, Tensor]) -> bytes:
    """A serialized ModelInferRequest of rank-1 tensors."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, tensor in inputs.items():
        request.inputs.add(name=name, datatype=tensor.datatype, shape=[len(tensor.values)])
        if tensor.datatype == "BYTES":
            raw = b"".join(struct.pack("<I", len(text)) + text for text in tensor.values)
        else:
            raw = struct.pack(f"<{len(tensor.values)}{_FORMATS[tensor.datatype]}", *tensor.values)
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


def slow_echo(delay_ms: int = 0, fault: str = "", model: str = "slow-echo") -> bytes:
    """A request for the model slow-echo."""
    inputs = {"INPUT0": Tensor("FP32", [1.5, 2.5]), "delay_ms": Tensor("INT32", [delay_ms])}
    if fault:
        inputs["fault"] = Tensor("BYTES", [fault.encode()])
    return payload(model, inputs)


def repeat(values: Sequence[int], delay_ms: int = 0) -> bytes:
    """A request for the decoupled model repeat."""
    inputs = {
        "IN": Tensor("INT32", values),
        "DELAY": Tensor("UINT32", [delay_ms] * len(values)),
        "WAIT": Tensor("UINT32", [0]),
    }
    return payload("repeat", inputs)


@dataclass
class Sent:
    """An attempt that was published, and the frames that came back."""

    request_id: bytes
    frames: asyncio.Queue[work_pb2.WorkFrame] = field(default_factory=asyncio.Queue)

    async def next(self, within_s: float = 20.0) -> work_pb2.WorkFrame:
        async with asyncio.timeout(within_s):
            return await self.frames.get()

    async def until(
        self, *kinds: str, within_s: float = 20.0
    ) -> tuple[work_pb2.WorkFrame, list[work_pb2.WorkFrame]]:
        """The first frame of one of `kinds`, and all frames before it."""
        before: list[work_pb2.WorkFrame] = []
        async with asyncio.timeout(within_s):
            while (frame := await self.frames.get()).WhichOneof("frame") not in kinds:
                assert frame.WhichOneof("frame") not in {"finished", "failed"}, frame
                before.append(frame)
        return frame, before

    async def last(self, within_s: float = 20.0) -> work_pb2.WorkFrame:
        return (await self.until("finished", "failed", within_s=within_s))[0]


class NodeBench:
    """One node in a region of its own, and what a scheduler and a gateway would do to it."""

    def __init__(self, client: Client, node: NodeId, environment: dict[str, str], home: Path):
        self.client = client
        self.node = node
        self.environment = environment
        self.log_path = home / "agent.log"
        self.ops_port = int(environment["BUSBAR_OPS_PORT"])
        self.process: subprocess.Popen[bytes] | None = None
        self._run_id = ""
        """Of the agent whose status was read last."""
        self._ended_run_ids: set[str] = set()
        """Of agents whose last status is there until the next one has written its own."""
        self._sent: dict[bytes, Sent] = {}
        self._revision = itertools.count(1)
        self._token = 1
        self._reply = topology.reply_subject(f"bench-{node.region}")

    # --- the process

    def start_agent(self) -> None:
        self._ended_run_ids |= {self._run_id} - {""}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                tethered([sys.executable, "-m", "busbar_node_agent"]),
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )

    def stop_agent(self, number: int = signal.SIGTERM, within_s: float = 40.0) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        lines = self.log_path.read_text().splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record.get("event") == event]

    @property
    def triton_pid(self) -> int:
        """Process id of the newest Triton."""
        return int(self.log_lines("triton started")[-1]["pid"])

    # --- the scheduler

    async def push(self, model: str, edit: Callable[[dict[str, bytes]], None] | None = None) -> str:
        """Put a demo model into the model store, `edit`ed; returns its digest."""
        files = files_of(MODELS / model)
        if edit:
            edit(files)
        return await make(files).put(self.store)

    @property
    def store(self) -> BundleStore:
        """The model store, as one who may write it."""
        return BundleStore(self.client)

    async def place(
        self,
        replicas: Mapping[str, tuple[str, int]],
        *,
        token: int | None = None,
        drain_within_ms: int = 0,
        queues: Sequence[str] | None = None,
        **outputs: str,
    ) -> None:
        """Write the node's placement: deployment → (digest, slots), as the leader of that token; as
        the newest one when none is given.

        Only `queues` get one, where some of the names can have none.
        """
        jetstream = self.client.jetstream()
        for deployment in replicas if queues is None else queues:
            spec = topology.work_consumer(self.node.region, deployment)
            await jetstream.add_consumer(spec.stream, spec.config())
        self._token = max(self._token, token or 0)
        placement = plan_pb2.NodePlacement(
            node=self.node.key,
            fencing_token=token or self._token,
            snapshot_revision=next(self._revision),
            drain_within_ms=drain_within_ms,
            replicas=[
                plan_pb2.ReplicaAssignment(
                    deployment=deployment, bundle_digest=digest, slots=slots, **outputs
                )
                for deployment, (digest, slots) in replicas.items()
            ],
        )
        store = await jetstream.key_value(topology.PLACEMENTS.name)
        await store.put(self.node.key, placement.SerializeToString())

    async def status(self) -> status_pb2.NodeStatus:
        status = status_pb2.NodeStatus.FromString(await self._value(topology.NODES.name))
        self._run_id = status.agent_run_id
        return status

    async def lease(self) -> status_pb2.NodeLease:
        return status_pb2.NodeLease.FromString(await self._value(topology.LEASES.name))

    async def _value(self, bucket: str) -> bytes:
        try:
            store: KeyValue = await self.client.jetstream().key_value(bucket)
            return (await store.get(self.node.key)).value or b""
        except Exception:  # noqa: BLE001  # not written yet
            return b""

    async def replica(
        self,
        deployment: str,
        state: int,
        *,
        reason: str = "",
        digest: str = "",
        within_s: float = READY_WITHIN_S,
    ) -> status_pb2.ReplicaStatus:
        """Wait until the replica of the agent that runs is in that state, for that reason."""
        found: dict[str, status_pb2.ReplicaStatus] = {}

        async def reached() -> bool:
            found.clear()
            status = await self.status()
            if status.agent_run_id not in self._ended_run_ids:
                found.update({each.deployment: each for each in status.replicas})
            here = found.get(deployment)
            return (
                here is not None
                and here.state == state
                and reason in here.reason
                and digest in here.bundle_digest
            )

        await poll(reached, within_s, lambda: f"{deployment}: {found}")
        return found[deployment]

    async def ready(self, *deployments: str, within_s: float = READY_WITHIN_S) -> None:
        for deployment in deployments:
            await self.replica(deployment, status_pb2.REPLICA_STATE_READY, within_s=within_s)

    async def unready(self) -> list[str]:
        """Why the agent says that it is not ready; nothing when it is."""

        def asked() -> list[str]:
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{self.ops_port}/readyz", timeout=2
                ).close()
            except urllib.error.HTTPError as answer:
                return json.loads(answer.read())["reasons"]
            except OSError as error:
                return [f"it does not answer: {error}"]
            return []

        return await asyncio.to_thread(asked)

    async def says_ready(self) -> bool:
        return not await self.unready()

    async def pulse(self) -> None:
        """Show for ever that the bus can be written to, as every scheduler does."""
        pulse = topology.entry_subject(topology.LEASES, topology.PULSE, "")
        while True:
            await self.client.publish(pulse, b"")
            await asyncio.sleep(topology.PULSE_INTERVAL.total_seconds())

    # --- the gateway

    async def listen(self) -> None:
        async def on_frame(message: Msg) -> None:
            frame = work_pb2.WorkFrame.FromString(message.data)
            if frame.request_id in self._sent:
                self._sent[frame.request_id].frames.put_nowait(frame)

        await self.client.subscribe(self._reply, cb=on_frame)

    async def send(
        self,
        deployment: str,
        data: bytes,
        *,
        deadline_s: float = 30.0,
        stream: bool = False,
        attempt: int = 1,
        request_id: bytes = b"",
        traceparent: str = "",
        engine_losses: int = 0,
    ) -> Sent:
        sent = Sent(request_id or uuid.uuid4().bytes)
        self._sent[sent.request_id] = sent
        work = work_pb2.InferenceWork(
            request_id=sent.request_id,
            attempt=attempt,
            tenant_id="t1",
            deployment=deployment,
            deadline_unix_ms=int((time.time() + deadline_s) * 1000),
            reply_subject=self._reply,
            traceparent=traceparent,
            stream=stream,
            payload=data,
            engine_losses=engine_losses,
        )
        subject = topology.work_subject(self.node.region, deployment)
        await self.client.jetstream().publish(subject, work.SerializeToString())
        return sent

    async def cancel(self, sent: Sent, attempt: int = 1) -> None:
        cancel = work_pb2.WorkCancel(request_id=sent.request_id, attempt=attempt)
        subject = topology.cancel_subject(self.node.key)
        await self.client.publish(subject, cancel.SerializeToString())


async def poll(
    condition: Callable[[], Any], within_s: float, what: Callable[[], str] = lambda: ""
) -> None:
    """Wait until the coroutine function `condition` returns true."""
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what()}"
        await asyncio.sleep(0.05)
