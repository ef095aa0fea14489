"""What a request costs the model that serves it, for sharing the model fairly and for limits."""

from __future__ import annotations

from busbar_gateway.domain.routes import Manifest

INPUT_TOKEN_COST, OUTPUT_TOKEN_COST = 1.0, 2.0
"""As in Sheng et al., OSDI'24: a token made takes about twice the time of a token read."""
_BYTES_PER_TOKEN = 4
"""Of a text, as a first guess; what the model counts corrects it."""
_US_PER_MS = 1000


def guessed_input_tokens(manifest: Manifest, payload_bytes: int) -> int:
    """How many tokens a payload may hold; 0 for models that do not count tokens."""
    return 0 if manifest.task == "tensor" else payload_bytes // _BYTES_PER_TOKEN


def known_cost(manifest: Manifest, payload_bytes: int) -> float:
    """What is known of the cost before the request runs."""
    return INPUT_TOKEN_COST * guessed_input_tokens(manifest, payload_bytes)


def cost_of(input_tokens: int, output_tokens: int, compute_us: int = 0) -> float | None:
    """The cost: weighted tokens, or milliseconds of compute where a model counts none.

    None when nothing is known of it. A model always counts in the same way, so
    that costs of one deployment can be compared.
    """
    if input_tokens or output_tokens:
        return INPUT_TOKEN_COST * input_tokens + OUTPUT_TOKEN_COST * output_tokens
    return compute_us / _US_PER_MS if compute_us else None
