"""GPUs through NVML: their memory, and their energy shared among attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pynvml
import structlog

from busbar_node_agent.domain.energy import EnergyShares

log = structlog.get_logger()

READ_INTERVAL_S = 0.1
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of this node as NVML has them."""

    handles: Sequence[Any]
    names: tuple[str, ...]
    memory_mib: int
    counts_energy: bool

    def energy_mj(self) -> float:
        """Sum of the energy counters since the driver was loaded, millijoules."""
        return float(sum(_total_energy_mj(handle) for handle in self.handles))


def find_gpus() -> Gpus | None:
    """The GPUs, or None on a node without NVML or without a GPU."""
    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        if not handles:
            return None
        return Gpus(
            handles=handles,
            names=tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles),
            memory_mib=sum(_memory_mib(handle) for handle in handles),
            counts_energy=_counts_energy(handles),
        )
    except pynvml.NVMLError as error:
        log.info("no GPU counters", reason=str(error))
        return None


class NotMeasured:
    """Energy on a node without a counter: nothing is invented."""

    measured = False

    def began(self) -> float:
        """Nothing to remember."""
        return 0.0

    def ended(self, level: float) -> int:
        """Nothing measured."""
        del level
        return 0


class MeasuredEnergy:
    """Attributes the GPUs' energy counter to attempts by their share of busy time."""

    measured = True

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._shares = EnergyShares(time.monotonic(), gpus.energy_mj())

    def began(self) -> float:
        """See usecases.work.Energy."""
        return self._shares.began(time.monotonic())

    def ended(self, level: float) -> int:
        """See usecases.work.Energy."""
        return self._shares.ended(time.monotonic(), level)

    async def read_for_ever(self) -> None:
        """Keep reading the counter."""
        while True:
            await asyncio.sleep(READ_INTERVAL_S)
            try:
                counter_mj = await asyncio.to_thread(self._gpus.energy_mj)
            except pynvml.NVMLError as error:
                log.warning("energy counter unreadable", error=str(error))
                continue
            self._shares.read(time.monotonic(), counter_mj)


def _counts_energy(handles: Sequence[Any]) -> bool:
    try:
        return all(_total_energy_mj(handle) >= 0 for handle in handles)
    except pynvml.NVMLError:
        return False


def _total_energy_mj(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def _memory_mib(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB
