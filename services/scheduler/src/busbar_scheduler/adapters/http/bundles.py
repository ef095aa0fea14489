"""The admin API of bundles: chunks first, each checked as it arrives, then what they make."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

from busbar_contracts.scheduler.v1.bundle_pb2 import BundleContents, BundleSeal, SealedBundle
from busbar_errors import Rejected, Unavailable
from busbar_messaging.bundles.contents import CHUNK_BYTES_MAX, CONTENTS_BYTES_MAX, digest_of
from busbar_messaging.bundles.sealing import TrustedKeys
from busbar_messaging.bundles.store import BundleStore
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPBearer
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from busbar_scheduler.adapters.bundle_reader import Inspected, inspect
from busbar_scheduler.adapters.declarations import Declarations
from busbar_scheduler.adapters.http import bundle_schemas as schemas
from busbar_scheduler.adapters.http.errors import ErrorBody
from busbar_scheduler.usecases.keep_bundles import InUse, Sweeper, remove, uses
from busbar_scheduler.usecases.push_bundle import Intake, missing

BUNDLES_PATH, CHUNKS_PATH = "/admin/v1/bundles", "/admin/v1/chunks"
ASKED_AT_ONCE_MAX = 4_096

_CHUNKS_AT_ONCE_MAX = 8
_STALL_S = 30.0
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (401, 404, 408, 409, 413, 415, 422, 503)
}
_CHUNK_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class ChunkList(BaseModel):
    """Chunks by their SHA-256."""

    model_config = ConfigDict(extra="forbid")

    sha256: list[Sha256] = Field(max_length=ASKED_AT_ONCE_MAX)


class SealBody(BaseModel):
    """Somebody's word for a bundle."""

    model_config = ConfigDict(extra="forbid")

    public_key: Sha256 = Field(description="Ed25519, 64 hex digits")
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
    approves_code: bool = False


class BundleBody(BaseModel):
    """A bundle whose chunks have all been sent."""

    model_config = ConfigDict(extra="forbid")

    contents: Base64Bytes = Field(
        description="serialized busbar.scheduler.v1.BundleContents", max_length=CONTENTS_BYTES_MAX
    )
    seal: SealBody


@dataclass(frozen=True, slots=True)
class BundlesApi:
    """What the handlers work with."""

    declarations: Declarations
    store: BundleStore
    trusted: TrustedKeys
    bundle_bytes_max: int
    in_use: InUse
    sweeper: Sweeper
    _places: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_CHUNKS_AT_ONCE_MAX)
    )

    def chunks(self) -> APIRouter:
        """Routes of chunks."""
        router = APIRouter(tags=["bundles"], dependencies=[Depends(HTTPBearer(auto_error=False))])

        @router.post(f"{CHUNKS_PATH}/missing", responses=_FAILURES)
        async def list_missing_chunks(body: ChunkList) -> ChunkList:
            """Which of these chunks have to be sent."""
            wanted = [bytes.fromhex(one) for one in body.sha256]
            lacking = await missing(self.store, wanted)
            return ChunkList(sha256=[one.hex() for one in lacking])

        @router.post(CHUNKS_PATH, status_code=204, responses=_FAILURES, openapi_extra=_CHUNK_BODY)
        async def send_chunk(request: Request, sha256: Annotated[Sha256, Query()]) -> None:
            """Send a chunk of at most 4 MiB; its digest is checked."""
            if self._places.locked():
                raise Unavailable(f"{_CHUNKS_AT_ONCE_MAX} chunks are being sent already", 1.0)
            async with self._places:
                content = await _bounded_body(request)
                await self.store.put_chunk(bytes.fromhex(sha256), content)

        @router.post(f"{CHUNKS_PATH}/sweep", responses=_FAILURES)
        async def sweep_chunks(body: schemas.SweepBody) -> schemas.SweepView:
            """Sweep what no bundle consists of; on a dry run only say what would go."""
            decided, contents = await self.sweeper.sweep(dry_run=body.dry_run)
            return schemas.SweepView.of(decided, contents, dry_run=body.dry_run)

        del list_missing_chunks, send_chunk, sweep_chunks
        return router

    def bundles(self) -> APIRouter:
        """Routes of bundles."""
        router = APIRouter(tags=["bundles"], dependencies=[Depends(HTTPBearer(auto_error=False))])

        @router.put(
            f"{BUNDLES_PATH}/{{digest}}",
            status_code=201,
            responses={**_FAILURES, 200: {"model": schemas.BundleView}},
        )
        async def push_bundle(
            digest: Digest, body: BundleBody, response: Response
        ) -> schemas.BundleView:
            """Push a bundle whose chunks are there; 200 when it was there."""
            sealed = _sealed(body)
            if digest_of(sealed.contents) != digest:
                raise Rejected(f"these contents do not have the digest {digest}")
            bundle, new = await self._intake().push(sealed, _now_unix_ms())
            response.status_code = 201 if new else 200
            return schemas.BundleView.of(bundle, uses(self.in_use).get(bundle.digest, []))

        @router.get(BUNDLES_PATH, responses={status: {"model": ErrorBody} for status in (401, 422)})
        async def list_bundles() -> schemas.BundleList:
            """Every pushed bundle, newest first."""
            newest = sorted(
                self.declarations.bundles(), key=lambda one: (-one.pushed_unix_ms, one.digest)
            )
            used = uses(self.in_use)
            return schemas.BundleList(
                items=[schemas.BundleView.of(one, used.get(one.digest, [])) for one in newest],
                bundle_bytes_max=self.bundle_bytes_max,
            )

        @router.delete(f"{BUNDLES_PATH}/{{digest}}", status_code=204, responses=_FAILURES)
        async def remove_bundle(digest: Digest) -> None:
            """Remove a bundle that nothing uses or may go back to; a sweep deletes its chunks."""
            await remove(self.declarations, self.in_use, digest)

        del push_bundle, list_bundles, remove_bundle
        return router

    def _intake(self) -> Intake:
        async def inspect_stored(contents: BundleContents) -> Inspected:
            return await inspect(contents, self.store.chunk)

        return Intake(
            self.trusted, self.bundle_bytes_max, inspect_stored, self.store, self.declarations
        )


def _sealed(body: BundleBody) -> SealedBundle:
    seal = BundleSeal(
        public_key=bytes.fromhex(body.seal.public_key),
        signature=bytes.fromhex(body.seal.signature),
        approves_code=body.seal.approves_code,
    )
    return SealedBundle(contents=body.contents, seals=[seal])


async def _bounded_body(request: Request) -> bytes:
    """The body; whoever sends too much, or stops sending, is refused on the way."""
    content = bytearray()
    stream = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(_STALL_S):
                content += await stream.__anext__()
        except StopAsyncIteration:
            return bytes(content)
        except TimeoutError as error:
            raise HTTPException(408, "the chunk stalled") from error
        except ClientDisconnect as error:
            raise Rejected("the chunk broke off") from error
        if len(content) > CHUNK_BYTES_MAX:
            raise HTTPException(413, f"a chunk may have {CHUNK_BYTES_MAX} bytes at most")


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000
