"""Receiving a bundle into a temporary file, hashed and bounded on the way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO

from busbar_errors import Rejected, Unavailable
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from busbar_scheduler.usecases.push_bundle import Upload

_CONTENT_TYPES = {"application/x-tar", "application/octet-stream"}
_STALL = timedelta(seconds=30)
_AT_ONCE_MAX = 4


@dataclass(frozen=True, slots=True)
class Uploads:
    """Takes a few uploads at a time into `folder`."""

    folder: Path
    bundle_max_bytes: int
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE_MAX))

    @contextlib.asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """The upload; its file goes when the context ends."""
        self._check_headers(request)
        if self._places.locked():
            raise Unavailable(f"{_AT_ONCE_MAX} bundles are being pushed already", 5.0)
        async with self._places:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tar") as file:
                digest, size = hashlib.sha256(), 0
                async for chunk in _chunks(request):
                    size += len(chunk)
                    self._check_size(size)
                    digest.update(chunk)
                    await _write(file, chunk)
                file.flush()
                yield Upload(Path(file.name), f"sha256:{digest.hexdigest()}", size)

    def _check_headers(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _CONTENT_TYPES:
            raise HTTPException(415, "send the bundle as application/x-tar")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._check_size(int(declared))

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.bundle_max_bytes:
            raise HTTPException(413, f"a bundle may have {self.bundle_max_bytes} bytes at most")


async def _write(file: IO[bytes], chunk: bytes) -> None:
    try:
        await asyncio.to_thread(file.write, chunk)
    except OSError as error:
        raise Unavailable(f"no room for the upload: {error}", 30.0) from error


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(_STALL.total_seconds()):
                yield await stream.__anext__()
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise HTTPException(408, "the upload stalled") from error
        except ClientDisconnect as error:
            raise Rejected("the upload broke off") from error
