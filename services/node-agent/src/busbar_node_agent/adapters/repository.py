"""The directory that Triton loads from: one directory per deployment."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from busbar_messaging.bundles.contents import CONFIG_FILE
from busbar_messaging.topology import checked_name

from busbar_node_agent.domain.naming import named_config
from busbar_node_agent.usecases.replica import Bundle


@dataclass(frozen=True, slots=True)
class ModelRepository:
    """Holds what is being served and nothing else."""

    root: Path

    async def stage(self, deployment: str, bundle: Bundle) -> None:
        """Make the repository hold the bundle under the deployment's name."""
        await asyncio.to_thread(self._stage, checked_name(deployment), bundle.files)

    async def unstage(self, deployment: str) -> None:
        """Remove the deployment's directory."""
        target = self.root / checked_name(deployment)
        await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)

    def clear(self) -> None:
        """Remove everything; nothing in it outlives the agent."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in self.root.iterdir():
            shutil.rmtree(entry, ignore_errors=True)

    def _stage(self, deployment: str, files: Mapping[str, Path]) -> None:
        target = self.root / deployment
        shutil.rmtree(target, ignore_errors=True)
        for name, source in files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != CONFIG_FILE:
                _link_or_copy(source, path)
        text = files[CONFIG_FILE].read_text()
        (target / CONFIG_FILE).write_text(named_config(text, deployment))


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no space; over file systems' borders it has to be a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copyfile(source, target)
