"""Connecting to the bus, and publishing so that nothing is lost silently."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import structlog
from busbar_errors import Unavailable
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import PubAck
from nats.js.client import JetStreamContext
from nats.js.errors import APIError
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from busbar_messaging.background import within
from busbar_messaging.nkey import is_credentials, read_credentials

log = structlog.get_logger()

_SAY_AGAIN_AFTER_S = 30.0
_RETRYABLE_API_CODES = frozenset({500, 503})
_DUPLICATE_IN_PROCESS = 10158
"""What we sent before is being stored; asked again, the stream says where."""
_ANSWER_WITHIN = timedelta(seconds=2)
_LISTEN_MIN_S, _LISTEN_MAX_S = 0.05, 15.0
"""How long to listen for one answer: it bounds how many are listened for at once."""
_DRAIN_SHARE = 0.75
"""Of the grace of closing, for what came in; the rest is for what is to go out."""


class BusSettings(BaseSettings):
    """Where the bus is and who we are on it: BUSBAR_NATS_URL, _USER, _PASSWORD (or _PASSWORD_FILE).

    Where servers know their users by JWT, the password is the text of a credentials file.
    """

    model_config = SettingsConfigDict(env_prefix="BUSBAR_", frozen=True)

    nats_url: str
    nats_user: str
    nats_password: SecretStr = SecretStr("")
    nats_password_file: Path | None = None
    """Where the password stands, when it is not given itself."""
    nats_inbox: str = Field(default="_INBOX", pattern=r"^_INBOX(\.[a-z0-9_-]+)*$")
    """What the subjects begin with on which this client takes answers."""
    bus_connect_timeout: timedelta = timedelta(seconds=30)

    @model_validator(mode="after")
    def _says_one_password(self) -> Self:
        if bool(self.nats_password.get_secret_value()) == bool(self.nats_password_file):
            raise ValueError("give either nats_password or nats_password_file")
        return self

    @property
    def password_setting(self) -> str:
        """What tells the password."""
        return f"BUSBAR_NATS_PASSWORD{'_FILE' if self.nats_password_file else ''}"

    @property
    def password(self) -> str:
        """The password, or the text of the credentials file.

        Raises Unavailable when the file cannot be read.
        """
        if self.nats_password_file:
            try:
                return self.nats_password_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Unavailable(
                    f"the NATS password cannot be read from {self.nats_password_file} "
                    f"({self.password_setting}): {error}"
                ) from error
        return self.nats_password.get_secret_value()


class ConnectionLog:
    """Says what becomes of the connection: each change at once, a repeated error now and then.

    While a server is away nats-py reports the same failure four times a second.
    """

    def __init__(self) -> None:
        self._said = ""
        self._said_at_s = 0.0
        self._unsaid = 0
        self.last = ""
        """The last that went wrong."""
        self.refused = False
        """Whether the last that went wrong is that the server did not believe who we are."""

    async def disconnected(self) -> None:
        """nats-py's callback."""
        log.warning("bus disconnected")
        self._said = ""

    async def reconnected(self) -> None:
        """nats-py's callback."""
        log.info("bus reconnected")
        self._said = ""

    async def error(self, error: Exception) -> None:
        """nats-py's callback."""
        # One that is refused may find only that it was cut off, when it tries again.
        cut_off = isinstance(error, ConnectionResetError)
        refused = "authorization violation" in str(error).lower()
        self.refused = refused or (self.refused and cut_off)
        self.last = str(error) or repr(error)
        now_s = asyncio.get_running_loop().time()
        if repr(error) == self._said and now_s - self._said_at_s < _SAY_AGAIN_AFTER_S:
            self._unsaid += 1
            return
        log.warning("bus error", error=repr(error), repeats_unsaid=self._unsaid)
        self._said, self._said_at_s, self._unsaid = repr(error), now_s, 0


async def connect(settings: BusSettings, client_name: str) -> Client:
    """Connect, waiting up to `bus_connect_timeout` for the server; reconnect for ever after.

    Raises Unavailable when there is no server in time, or none that takes our password.
    """

    reports = ConnectionLog()
    options: dict[str, Any] = {
        "servers": settings.nats_url,
        **_who(settings),
        "name": client_name,
        "inbox_prefix": settings.nats_inbox,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.25,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
        "pending_size": 64 * 1024 * 1024,
        "disconnected_cb": reports.disconnected,
        "reconnected_cb": reports.reconnected,
        "error_cb": reports.error,
    }
    client = Client()
    try:
        await within(settings.bus_connect_timeout.total_seconds(), client.connect(**options))
    except asyncio.CancelledError:
        if client.is_connected:  # just then, and nobody is there to have it
            await client.close()
        raise
    except (TimeoutError, OSError, NatsError) as error:
        if reports.refused:
            refusal = (
                f"the NATS server at {settings.nats_url} refuses user {settings.nats_user!r}: "
                f"the password ({settings.password_setting}) or the user is wrong there"
            )
            raise Unavailable(refusal) from error
        waited_s = settings.bus_connect_timeout.total_seconds()
        raise Unavailable(
            f"no NATS server at {settings.nats_url} within {waited_s:g} s; "
            f"is it running, and is BUSBAR_NATS_URL right? ({reports.last or repr(error)})"
        ) from error
    return client


def _who(settings: BusSettings) -> dict[str, Any]:
    secret = settings.password
    if is_credentials(secret):
        jwt, key = read_credentials(secret)

        def sign(nonce: str) -> bytes:
            return base64.b64encode(key.sign(nonce.encode()))

        # Without a user nats-py sends no credentials of any kind.
        return {"user": settings.nats_user, "user_jwt_cb": jwt.encode, "signature_cb": sign}
    return {"user": settings.nats_user, "password": secret}


async def publish_durably(
    jetstream: JetStreamContext,
    subject: str,
    payload: bytes,
    *,
    message_id: str,
    give_up_after: timedelta,
    answer_within: timedelta = _ANSWER_WITHIN,
    headers: dict[str, str] | None = None,
) -> PubAck:
    """Publish until the stream acknowledges; repeats are dropped there by `message_id`.

    Losing a leader pauses a stream for 4 to 9 s, so callers that may wait give
    15 s or more. What is sent in that pause may be lost, so it is sent again after
    `answer_within`; an answer to what was sent again counts also when it takes longer.
    Raises Unavailable when the time is up; the message may or may not have been stored then.
    """
    deadline = asyncio.get_running_loop().time() + give_up_after.total_seconds()
    all_headers = {"Nats-Msg-Id": message_id, **(headers or {})}
    within_s = answer_within.total_seconds()

    async def send(listen_s: float) -> PubAck:
        return await jetstream.publish(subject, payload, timeout=listen_s, headers=all_headers)

    try:  # nearly always that is all there is to it
        return await send(max(_LISTEN_MIN_S, min(within_s, give_up_after.total_seconds())))
    except (NatsError, TimeoutError, OSError) as error:
        _check_worth_another_try(subject, error, deadline)
    return await _send_again(send, subject, within_s, deadline)


async def _send_again(
    send: Callable[[float], Coroutine[None, None, PubAck]],
    subject: str,
    within_s: float,
    deadline: float,
) -> PubAck:
    """Send each `within_s` until one of them is acknowledged, however late."""
    now, pause_s = asyncio.get_running_loop().time, 0.02
    waiting: set[asyncio.Task[PubAck]] = set()
    try:
        while True:
            await asyncio.sleep(max(0.0, min(pause_s, deadline - now())))
            pause_s = min(pause_s * 2, 0.5)
            remaining_s = max(_LISTEN_MIN_S, deadline - now())
            waiting.add(asyncio.create_task(send(min(_LISTEN_MAX_S, remaining_s))))
            ended, waiting = await asyncio.wait(
                waiting,
                timeout=min(within_s, remaining_s),
                return_when=asyncio.FIRST_COMPLETED,
            )
            failures = [one.exception() for one in ended]
            for one, failure in zip(ended, failures, strict=True):
                if failure is None:
                    return one.result()
            for failure in failures or [TimeoutError()]:
                _check_worth_another_try(subject, failure, deadline)
    finally:
        for one in waiting:
            one.cancel()


def _check_worth_another_try(subject: str, error: BaseException | None, deadline: float) -> None:
    over = asyncio.get_running_loop().time() >= deadline
    if isinstance(error, APIError):
        again = error.code in _RETRYABLE_API_CODES or error.err_code == _DUPLICATE_IN_PROCESS
        if over or not again:
            raise Unavailable(f"{subject} refused a message: {error.description}") from error
    elif not isinstance(error, NatsError | TimeoutError | OSError):
        assert error is not None
        raise error
    elif over:
        raise Unavailable(f"{subject} did not acknowledge in time: {error!r}") from error


async def close(client: Client, grace: timedelta = timedelta(seconds=2)) -> None:
    """Flush and close; a server that is gone does not hold us up."""
    client._disconnected_cb = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no news
    # Cut off from outside, it waits ten seconds more and leaves an error that nobody retrieves.
    client.options["drain_timeout"] = grace.total_seconds() * _DRAIN_SHARE
    with contextlib.suppress(NatsError, TimeoutError, OSError):
        await asyncio.wait_for(client.drain(), grace.total_seconds())
    if not client.is_closed:
        await client.close()
