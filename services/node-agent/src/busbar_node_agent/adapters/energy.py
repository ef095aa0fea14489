"""GPUs through NVML: their memory, and their energy shared among attempts."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from busbar_node_agent.domain.energy import EnergyShares

log = structlog.get_logger()

READ_INTERVAL_S = 0.1
_MIB = 1024 * 1024
_NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of this node as NVML has them."""

    nvml: Any
    handles: Sequence[Any]
    names: tuple[str, ...]
    memory_mib: int

    def counts_energy(self) -> bool:
        """Whether every GPU has an energy counter; older ones have none."""
        try:
            return self.energy_mj() >= 0
        except self.nvml.NVMLError:
            return False

    def energy_mj(self) -> int:
        """Sum of the energy counters since the driver was loaded, millijoules."""
        read = self.nvml.nvmlDeviceGetTotalEnergyConsumption
        return sum(int(read(handle)) for handle in self.handles)


def find_gpus() -> Gpus | None:
    """The GPUs, or None on a node without NVML or without a GPU."""
    try:
        ctypes.CDLL(_NVML)
    except OSError:
        return None
    nvml = importlib.import_module("pynvml")  # 13 MiB that a node without a GPU need not spend
    try:
        nvml.nvmlInit()
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
        ]
        names = tuple(str(nvml.nvmlDeviceGetName(handle)) for handle in handles)
        memory = [int(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
    except nvml.NVMLError as error:
        log.warning("GPUs not readable", reason=str(error))
        return None
    return Gpus(nvml, handles, names, sum(memory) // _MIB) if handles else None


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
            except self._gpus.nvml.NVMLError as error:
                log.warning("energy counter unreadable", error=str(error))
                continue
            self._shares.read(time.monotonic(), counter_mj)
