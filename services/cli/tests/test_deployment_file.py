"""The file that `busbar deploy` takes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from busbar_cli.deployment_file import EXAMPLE, read_deployments
from busbar_cli.failures import CommandError, Exit


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "d.yaml"
    path.write_text(text)
    return path


def test_the_example_is_read_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    chat, echo = read_deployments(written(tmp_path, EXAMPLE))

    assert (chat.name, chat.replicas, chat.regions, chat.tenants) == ("chat", 2, ["r1"], ["acme"])
    assert (chat.survives_site_loss, chat.pins) == (True, ["r1/s1", "r1/s2/n4"])
    assert (chat.max_replicas, chat.value_per_request) == (6, Decimal("0.0004"))
    assert (chat.scale_down_after_s, chat.per_site_max, chat.per_feeder_max) == (600, 3, 0)
    assert chat.path == tmp_path / "models" / "tiny-lm"
    assert (echo.name, echo.at_once, chat.at_once) == ("echo", True, False)


def test_the_complaint_comes_last_where_it_is_seen(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        read_deployments(written(tmp_path, "- {name: m, bundle: b, colour: red}"))

    assert EXAMPLE in caught.value.message
    assert "0.colour" in caught.value.message.splitlines()[-1]


def test_defaults(tmp_path: Path) -> None:
    (one,) = read_deployments(written(tmp_path, "- {name: m, bundle: simple}"))

    assert (one.replicas, one.regions, one.tenants, one.path) == (1, [], [], None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file"),
        ("[]", "the file"),
        ("name: m", "the file"),
        ("- [", "cannot be read"),
        ("- {name: m}", "either bundle or path"),
        ("- {name: m, bundle: b, path: p}", "either bundle or path"),
        ("- {name: M, bundle: b}", "0.name"),
        ("- {name: m, bundle: b, replicas: -1}", "0.replicas"),
        ("- {name: m, bundle: b, replicas: two}", "0.replicas"),
        ("- {name: m, bundle: b, replicas: 5, max_replicas: 2}", "max_replicas allows 2"),
        ("- {name: m, bundle: b, per_site_max: 0}", "0.per_site_max: .* leave it out for that"),
        ("- {name: m, bundle: b, per_feeder_max: 0}", "0.per_feeder_max: .* leave it out"),
        ("- {name: m, bundle: b, per_feeder_max: -1}", "0.per_feeder_max"),
        ("- {name: m, bundle: b, colour: red}", "0.colour"),
        ("- {name: m, bundle: b, regions: []}", "0.regions: .* leave it out, or name some"),
        ("- {name: m, bundle: b, tenants: []}", "0.tenants: .* leave it out, or name some"),
        ("- {name: m, bundle: b, pins: []}", "0.pins: .* leave it out, or name some"),
        ("- {name: m, bundle: b}\n- {name: m, bundle: c}", "more than once"),
        ("- name: m\n  bundle: b\n  name: n", "'name' twice"),
    ],
)
def test_a_bad_file_is_wrong_usage(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason) as caught:
        read_deployments(written(tmp_path, text))

    assert caught.value.exit_status is Exit.USAGE
