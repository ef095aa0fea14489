"""Which bundle a declaration means."""

from __future__ import annotations

import pytest
from busbar_errors import NotFound, Rejected
from busbar_scheduler.domain.fleet import Bundle
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.usecases.declare_deployment import find_bundle

FIRST, SECOND, THIRD = "a" * 64, "b" * 64, "b" * 12 + "c" * 52
MODEL = Manifest("m", "1", Task.TENSOR, slots=4, memory_mib=100, price_class="p")
BUNDLES = tuple(
    Bundle(f"sha256:{digest}", 1, MODEL, pushed)
    for pushed, digest in enumerate((FIRST, SECOND, THIRD))
)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("m", THIRD),
        (FIRST, FIRST),
        (f"sha256:{SECOND}", SECOND),
        (FIRST[:12], FIRST),
        (f"sha256:{FIRST[:12]}", FIRST),
        (THIRD[:13], THIRD),
    ],
)
def test_a_bundle_is_named_as_lists_show_it(wanted: str, found: str) -> None:
    assert find_bundle(BUNDLES, wanted).digest == f"sha256:{found}"


@pytest.mark.parametrize("wanted", ["n", FIRST[:11], "c" * 12, "sha256:"])
def test_what_nobody_pushed_is_not_found(wanted: str) -> None:
    with pytest.raises(NotFound, match="has been pushed"):
        find_bundle(BUNDLES, wanted)


def test_a_beginning_that_several_share_means_none_of_them() -> None:
    with pytest.raises(Rejected, match="2 bundles"):
        find_bundle(BUNDLES, SECOND[:12])
