"""Chat messages as the prompt that a model was trained on, by its bundle's template.

Templates are Jinja, as Hugging Face tokenizers carry them, and run in Jinja's
sandbox: they come with a bundle, not with the platform. The sandbox bounds what
they reach, not how long they take, and all requests wait for them: so one that
takes too long is broken off, and left alone for a while.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from time import monotonic, thread_time
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from busbar_gateway.domain.failures import InvalidInput, ModelFailed, PayloadTooLarge

_TEMPLATES_MAX = 256
_RENDER_FAILURES = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError,
)  # fmt: skip
RENDER_CPU_S_MAX = 0.25
"""Templates take well under a millisecond; with the longest prompts, tens of them."""
_LEFT_ALONE_FOR = 20
"""How often as long as it took is one left alone that took too long: all others wait for it."""
_REPEATED_MAX, _EXPONENT_MAX = 100_000, 64


class _Sandbox(ImmutableSandboxedEnvironment):
    """Without the operators by which one step takes any time and memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) <= _REPEATED_MAX and abs(right) <= _EXPONENT_MAX):
            raise SecurityError(f"{operator} of numbers that are too large")
        if operator == "*" and max(_size(left), _size(right)) > _REPEATED_MAX:
            raise SecurityError(f"{operator} of what is too large")
        return super().call_binop(context, operator, left, right)


def _size(operand: Any) -> float:
    return abs(operand) if isinstance(operand, (int, float)) else len(operand)


_ENVIRONMENT = _Sandbox(
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # the result is a prompt, not a page
    extensions=["jinja2.ext.loopcontrols"],
)

Message = dict[str, str]


class _TooLongError(Exception):
    """A template did not end within its time."""


class _RefusedByTemplateError(Exception):
    """The template itself says that it cannot take these messages."""


def _refuse(reason: object) -> NoReturn:
    raise _RefusedByTemplateError(str(reason))


class _Compiled:
    """A template, and until when it is left alone."""

    def __init__(self, source: str) -> None:
        tree = _ENVIRONMENT.parse(source)
        for part in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            part.body.insert(0, _call_of_step(part.lineno))
        code = _ENVIRONMENT.compile(tree)
        self.template = Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))
        self.alone_until_s = 0.0


def _call_of_step(line: int) -> nodes.Node:
    """An imported name is none that a template could give to something else."""
    call = nodes.Call(nodes.ImportedName(f"{__name__}.{step.__name__}"), [], [], None, None)
    return nodes.ExprStmt(call).set_lineno(line)


@lru_cache(maxsize=_TEMPLATES_MAX)
def _compiled(template: str) -> _Compiled:
    return _Compiled(template)


_rendering = threading.local()


def step() -> None:
    """Called by templates in each turn of a loop and each call of a macro."""
    if thread_time() > _rendering.until_s:
        raise _TooLongError


@contextlib.contextmanager
def _broken_off(compiled: _Compiled) -> Iterator[None]:
    """Within the context `step` raises _TooLongError once the CPU time is used up.

    At once while the template is to be left alone.
    """
    if monotonic() < compiled.alone_until_s:
        raise _TooLongError
    _rendering.until_s = thread_time() + RENDER_CPU_S_MAX
    try:
        yield
    except _TooLongError:
        compiled.alone_until_s = monotonic() + _LEFT_ALONE_FOR * RENDER_CPU_S_MAX
        raise


def render_prompt(template: str, messages: Sequence[Message], *, limit_bytes: int) -> str:
    """Return the prompt for `messages`, ending where the assistant is to speak.

    Raises InvalidInput when the template refuses the messages, PayloadTooLarge
    beyond `limit_bytes`, ModelFailed when the template itself is broken or takes too long.
    """
    try:
        compiled = _compiled(template)
        with _broken_off(compiled):
            return _rendered(compiled.template, messages, limit_bytes)
    except _TooLongError as error:
        limit_ms = round(RENDER_CPU_S_MAX * 1000)
        raise ModelFailed(
            f"the model's chat template took longer than {limit_ms} ms; try again later, or with"
            " fewer messages"
        ) from error
    except _RefusedByTemplateError as error:
        raise InvalidInput(
            f"the model's chat template refuses these messages: {error}", "messages"
        ) from error
    except _RENDER_FAILURES as error:
        raise ModelFailed("the model's chat template could not be rendered") from error


def _rendered(template: Template, messages: Sequence[Message], limit_bytes: int) -> str:
    parts: list[str] = []
    size = 0
    for part in template.generate(
        messages=list(messages),
        add_generation_prompt=True,
        bos_token="",
        eos_token="",
        raise_exception=_refuse,
    ):
        size += len(part)
        if size > limit_bytes:
            raise PayloadTooLarge(f"the rendered prompt is larger than {limit_bytes} bytes")
        parts.append(part)
    return "".join(parts)
