"""How a bundle's config.pbtxt comes to name the model as its deployment."""

from __future__ import annotations

import re

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|#[^\n]*|[{}\[\]<>]|[A-Za-z_]\w*')
_NAME_VALUE = re.compile(r'\s*:\s*("(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\')')


def named_config(text: str, name: str) -> str:
    """`text` of a config.pbtxt with its top-level `name` set to `name`.

    Triton loads a model only when it is named like its directory, which is
    named like the deployment; one bundle may serve under several names.
    """
    depth = 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in {"{", "[", "<"}:
            depth += 1
        elif word in {"}", "]", ">"}:
            depth -= 1
        elif word == "name" and depth == 0:
            value = _NAME_VALUE.match(text, token.end())
            if value is not None:
                return f'{text[: value.start(1)]}"{name}"{text[value.end(1) :]}'
    return f'name: "{name}"\n{text}'
