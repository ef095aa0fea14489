"""Streamed completions of a greedy model, kept whole so that they can be compared."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from busbar_runtime.platform import Platform

from harness.operator import Customer, Json, Operator
from harness.polling import eventually

PROMPTS = ("Where does the money live?", "Busbar makes one inference service", "A site is")
TOKENS = 300
_ASKED_WITHIN_S = 30
_POSTED_WITHIN_S = 60


@dataclass
class Story:
    """One streamed completion, and when its pieces came."""

    request_id: str = ""
    text: str = ""
    usage: Json = field(default_factory=dict[str, Any])
    done: bool = False
    at: list[float] = field(default_factory=list[float])

    @property
    def longest_gap_s(self) -> float:
        """Between one piece and the next."""
        return max((b - a for a, b in zip(self.at, self.at[1:], strict=False)), default=0.0)


@asynccontextmanager
async def telling(platform: Platform, customer: Customer) -> AsyncIterator[httpx.AsyncClient]:
    """The customer's client."""
    async with httpx.AsyncClient(
        base_url=platform.endpoints["http"],
        headers={"authorization": f"Bearer {customer.key}"},
        timeout=_ASKED_WITHIN_S,
        trust_env=False,
        verify=False,
    ) as client:
        yield client


async def tell(client: httpx.AsyncClient, model: str, prompt: str, story: Story) -> Story:
    """Stream a greedy completion to its end."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.is_success, await answer.aread()
        story.request_id = answer.headers["x-request-id"]
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                story.done = True
            elif line.startswith("data: "):
                _take(json.loads(line.removeprefix("data: ")), story)
    return story


def _take(event: Json, story: Story) -> None:
    assert "error" not in event, event
    story.usage = event["usage"] or {}
    for choice in event["choices"]:
        if choice["text"]:
            story.text += choice["text"]
            story.at.append(time.monotonic())


async def undisturbed(client: httpx.AsyncClient, model: str) -> dict[str, Story]:
    """What the model says to each prompt when nothing is wrong."""
    return {prompt: await tell(client, model, prompt, Story()) for prompt in PROMPTS}


def begin(client: httpx.AsyncClient, model: str, number: int, tasks: asyncio.TaskGroup) -> Story:
    """Begin the story of that number, in turns of each prompt."""
    story = Story()
    tasks.create_task(tell(client, model, PROMPTS[number % len(PROMPTS)], story))
    return story


async def charges(operator: Operator, customer: Customer, of: set[str]) -> dict[str, Json]:
    """The charges by request, once all of these are there; none is there twice."""

    async def look() -> list[Json]:
        return [one for one in await operator.usage(customer.tenant_id) if not one["voided"]]

    found = await eventually(
        look,
        within_s=_POSTED_WITHIN_S,
        what="charges",
        until=lambda seen: of <= {x["request_id"] for x in seen},
    )
    assert len({one["request_id"] for one in found}) == len(found)
    return {one["request_id"]: one for one in found}


def assert_told_as_if_nothing_had_been(
    stories: Sequence[Story], whole: Mapping[str, Story], charged: Mapping[str, Json]
) -> None:
    """No token is missing or there twice, and the customer pays for each of them once."""
    for number, story in enumerate(stories):
        expected, charge = whole[PROMPTS[number % len(PROMPTS)]], charged[story.request_id]
        assert story.done
        assert (story.text, story.usage) == (expected.text, expected.usage)
        assert charge["input_tokens"] == expected.usage["prompt_tokens"]
        assert charge["output_tokens"] == expected.usage["completion_tokens"]
