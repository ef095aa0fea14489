"""Chat messages as the prompt that a model was trained on, by its bundle's template.

Templates are Jinja, as Hugging Face tokenizers carry them, and run in Jinja's
sandbox: they come with a bundle, not with the platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from busbar_gateway.domain.failures import InvalidInput, ModelFailed, PayloadTooLarge

_TEMPLATES_MAX = 256
_RENDER_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # the result is a prompt, not a page
    extensions=["jinja2.ext.loopcontrols"],
)

Message = dict[str, str]


class _RefusedByTemplateError(Exception):
    """The template itself says that it cannot take these messages."""


def _refuse(reason: object) -> NoReturn:
    raise _RefusedByTemplateError(str(reason))


@lru_cache(maxsize=_TEMPLATES_MAX)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


def render_prompt(template: str, messages: Sequence[Message], *, limit_bytes: int) -> str:
    """Return the prompt for `messages`, ending where the assistant is to speak.

    Raises InvalidInput when the template refuses the messages, PayloadTooLarge
    beyond `limit_bytes`, ModelFailed when the template itself is broken.
    """
    parts: list[str] = []
    size = 0
    try:
        for part in _compiled(template).generate(
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
    except _RefusedByTemplateError as error:
        raise InvalidInput(
            f"the model's chat template refuses these messages: {error}", "messages"
        ) from error
    except _RENDER_FAILURES as error:
        raise ModelFailed("the model's chat template could not be rendered") from error
    return "".join(parts)
