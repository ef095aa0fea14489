"""The agent's pure decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from busbar_node_agent.domain.backoff import backoff_s
from busbar_node_agent.domain.caching import Cached, bytes_of, evictions
from busbar_node_agent.domain.credits import Credits
from busbar_node_agent.domain.desired import Assignment, Present, next_steps
from busbar_node_agent.domain.energy import EnergyShares
from busbar_node_agent.domain.health import FAILURES_MAX, STILL_MAX_S, ProbeHistory, Standstill
from busbar_node_agent.domain.measured import MeasuredBuffer
from busbar_node_agent.domain.naming import named_config
from busbar_node_agent.domain.starting import Start, given_up
from busbar_node_agent.domain.tensors import Tensor, TensorMalformed, difference, pack, unpack
from busbar_node_agent.domain.usage import TokenCount
from busbar_node_agent.domain.verdicts import FailureKind, judge, load_failure, refusal_code
from busbar_node_agent.usecases.lane import CHECKED_FOR_S, Lane
from busbar_node_agent.usecases.supervise import PROBE_INTERVAL_S, PROBE_TIMEOUT_S
from hypothesis import given
from hypothesis import strategies as st

SIMPLE, OTHER = Assignment("simple", "sha256:a", 4), Assignment("other", "sha256:b", 1)


# --- credits


@given(st.integers(1, 64), st.lists(st.sampled_from(["ask", "arrive", "end", "return"])))
def test_what_is_asked_for_and_in_hand_never_exceeds_the_slots(
    slots: int, events: list[str]
) -> None:
    credit = Credits(slots)
    for event in events:
        match event:
            case "ask":
                credit.asked(credit.wanted())
            case "arrive" if credit.outstanding:
                credit.arrived()
            case "end":
                credit.ended()
            case "return":
                credit.returned(credit.outstanding)
            case _:
                pass

        assert 0 <= credit.outstanding + credit.in_hand <= slots


@given(st.integers(1, 64), st.integers(0, 64))
def test_a_replica_with_nothing_asked_for_asks_for_every_free_slot(slots: int, busy: int) -> None:
    credit = Credits(slots, in_hand=min(busy, slots))

    assert credit.wanted() == slots - credit.in_hand


def test_slots_that_shrink_are_not_asked_for_again_before_work_ends() -> None:
    credit = Credits(slots=4, in_hand=4)
    credit.slots = 2

    wanted = [(credit.ended(), credit.wanted())[1] for _ in range(4)]

    assert wanted == [0, 0, 1, 2]


# --- verdicts


@pytest.mark.parametrize(
    ("code", "message", "loaded", "kind"),
    [
        ("INVALID_ARGUMENT", "shape", True, FailureKind.REJECTED),
        ("UNIMPLEMENTED", "decoupled", True, FailureKind.REJECTED),
        ("NOT_FOUND", "unknown version", True, FailureKind.NOT_FOUND),
        ("NOT_FOUND", "unknown model", False, FailureKind.UNAVAILABLE),
        ("INTERNAL", "ValueError", True, FailureKind.INTERNAL),
        ("INTERNAL", "stub died", False, FailureKind.UNAVAILABLE),
        ("INTERNAL", "Stub process 'm_0' is not healthy.", True, FailureKind.UNAVAILABLE),
        ("UNKNOWN", "?", True, FailureKind.INTERNAL),
        ("UNAVAILABLE", "Socket closed", True, FailureKind.UNAVAILABLE),
        ("CANCELLED", "shutting down", True, FailureKind.UNAVAILABLE),
        ("DEADLINE_EXCEEDED", "", True, FailureKind.DEADLINE_EXCEEDED),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", True, FailureKind.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "queue", True, FailureKind.UNAVAILABLE),
    ],
)
def test_a_status_of_triton_becomes_somebodys_fault(
    code: str, message: str, loaded: bool, kind: FailureKind
) -> None:
    failure = judge(code, message, loaded=loaded)

    assert failure.kind is kind
    assert failure.reason


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("expected 3 inputs but got 0 inputs", "INVALID_ARGUMENT"),
        ("Request for unknown model: 'm' is not found", "NOT_FOUND"),
        ("Request for unknown model: 'm' has no available versions", "UNAVAILABLE"),
        ("Exceeds maximum queue size", "UNAVAILABLE"),
    ],
)
def test_a_refusal_without_a_status_is_told_by_its_words(message: str, code: str) -> None:
    assert refusal_code(message) == code


# --- health


def test_three_unanswered_probes_in_a_row_are_a_hang() -> None:
    history = ProbeHistory(timeout_s=0.8)
    history.failed(0.8)
    history.failed(0.8)
    history.succeeded()
    history.failed(0.8)
    history.failed(0.8)
    twice = history.hung
    history.failed(0.8)

    assert (twice, history.hung) == (False, True)


def test_a_hang_is_seen_with_time_left_of_the_five_seconds_that_are_promised() -> None:
    assert PROBE_INTERVAL_S + FAILURES_MAX * PROBE_TIMEOUT_S <= 3.5


def test_a_probe_that_was_late_by_our_own_fault_does_not_count() -> None:
    history = ProbeHistory(timeout_s=0.8)
    for _ in range(5):
        history.failed(9.0)

    assert not history.hung


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([{7}, {7, 8}, {7, 8}], 7),
        ([{7}, {7}, set(), {7}, {7}], 0),
        ([{7}, {8}, {7}, {8}], 0),
    ],
    ids=["long", "with a break", "in turns"],
)
def test_a_process_that_stays_stopped_is_a_hang(looks: list[set[int]], found: int) -> None:
    history, apart_s = Standstill(), STILL_MAX_S / 2
    seen = [history.look(stopped, at * apart_s) for at, stopped in enumerate(looks)]

    assert seen == [*[0] * (len(looks) - 1), found]


# --- desired state


@pytest.mark.parametrize(
    ("desired", "present", "expected"),
    [
        ([SIMPLE], [], (["simple"], [], [])),
        ([SIMPLE], [Present(SIMPLE, leaving=False)], ([], [], [])),
        ([], [Present(SIMPLE, leaving=False)], ([], ["simple"], [])),
        ([], [Present(SIMPLE, leaving=True)], ([], [], [])),
        ([SIMPLE], [Present(SIMPLE, leaving=True)], ([], [], [])),
        (
            [Assignment("simple", "sha256:b", 4)],
            [Present(SIMPLE, leaving=False)],
            ([], ["simple"], []),
        ),
        (
            [Assignment("simple", "sha256:a", 8)],
            [Present(SIMPLE, leaving=False)],
            ([], [], ["simple"]),
        ),
    ],
)
def test_the_node_steps_towards_what_is_wanted(
    desired: list[Assignment],
    present: list[Present],
    expected: tuple[list[str], list[str], list[str]],
) -> None:
    steps = next_steps(
        {each.deployment: each for each in desired},
        {each.assignment.deployment: each for each in present},
    )

    started = [each.deployment for each in steps.start]
    adjusted = [each.deployment for each in steps.adjust]
    assert (started, list(steps.stop), adjusted) == expected


# --- bundles


FILES = st.dictionaries(st.sampled_from("abcdef"), st.just(10), min_size=1)


@given(st.lists(FILES, max_size=6), st.sets(st.integers(0, 5)), st.integers(0, 70))
def test_the_cache_keeps_its_bound_and_what_is_pinned(
    bundles: list[dict[str, int]], pinned: set[int], bytes_max: int
) -> None:
    cached = [Cached(str(at), at, files) for at, files in enumerate(bundles)]
    held = {str(at) for at in pinned}

    gone = evictions(cached, held, bytes_max=bytes_max)

    rest = [one for one in cached if one.digest not in gone]
    assert held.isdisjoint(gone)
    assert bytes_of(rest) <= bytes_max or {one.digest for one in rest} <= held
    # Nothing went that could have stayed: with the last one, or one used later, it was too much.
    if gone:
        assert bytes_of([*rest, cached[int(gone[-1])]]) > bytes_max
        assert list(gone) == sorted(gone, key=int)


def test_files_that_a_bundle_shares_are_freed_only_with_the_last_that_has_them() -> None:
    weights = {"weights": 90}
    cached = [Cached("old", 1.0, {**weights, "a": 1}), Cached("new", 2.0, {**weights, "b": 1})]

    assert evictions(cached, {"new"}, bytes_max=100, bytes_to_free=1) == ("old",)
    assert evictions(cached, set(), bytes_max=100, bytes_to_free=50) == ("old", "new")
    assert evictions(cached, set(), bytes_max=100) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name: "a"\nbackend: "python"', 'name: "b"\nbackend: "python"'),
        ("name:'a'", 'name:"b"'),
        ('input { name: "X" }\nname: "a"', 'input { name: "X" }\nname: "b"'),
        ('input [ { name: "X" } ]', 'name: "b"\ninput [ { name: "X" } ]'),
        ('# name: "old"\nbackend: "name: {"', 'name: "b"\n# name: "old"\nbackend: "name: {"'),
    ],
)
def test_a_configuration_is_named_like_its_deployment(text: str, expected: str) -> None:
    assert named_config(text, "b") == expected


# --- tensors


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("BYTES", (2,), ("a", "zwölf")),
        Tensor("BOOL", (2,), (True, False)),
        Tensor("INT64", (1, 2), (-1, 2**62)),
        Tensor("FP16", (1,), (0.5,)),
        Tensor("FP64", (0,), ()),
    ],
)
def test_a_tensor_survives_packing(tensor: Tensor) -> None:
    again = unpack(tensor.datatype, tensor.shape, pack(tensor))

    assert difference(tensor, again, 0.0) == ""


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", (2,), b"1234"),
        ("BYTES", (1,), b"\xff\0\0\0ab"),
        ("BYTES", (1,), b"\x01\0"),
        ("BYTES", (2,), b"\x01\0\0\0a"),
        ("FP7", (1,), b"1"),
    ],
)
def test_bytes_that_are_no_such_tensor_are_refused(
    datatype: str, shape: tuple[int, ...], raw: bytes
) -> None:
    with pytest.raises(TensorMalformed):
        unpack(datatype, shape, raw)


@pytest.mark.parametrize(
    ("got", "tolerance", "differs"),
    [
        (Tensor("FP32", (2,), (1.0, 2.0)), 0.0, ""),
        (Tensor("FP32", (2,), (1.0, 2.1)), 0.2, ""),
        (Tensor("FP32", (2,), (1.0, 2.1)), 0.05, "[1] is 2.1, expected 2.0 within 0.05"),
        (Tensor("FP32", (2,), (1.0, float("nan"))), 9.0, "[1] is nan"),
        (Tensor("FP32", (0,), ()), 0.0, "has shape [0], expected [2]"),
        (Tensor("FP64", (2,), (1.0, 2.0)), 0.0, "is FP64, expected FP32"),
        (None, 0.0, "is missing"),
    ],
)
def test_an_answer_is_compared_with_its_expectation(
    got: Tensor | None, tolerance: float, differs: str
) -> None:
    expected = Tensor("FP32", (2,), (1.0, 2.0))

    found = difference(expected, got, tolerance)

    assert found.startswith(differs)
    assert bool(found) == bool(differs)


async def test_a_model_that_has_passed_its_check_is_not_doubted_again_for_a_while() -> None:
    triton: Any = None  # nothing is asked of it
    lane = Lane("m", Credits(1), triton, None, lambda: None)
    lane.doubt()
    first = lane.doubted, lane.suspected.is_set()
    lane.trust()
    lane.doubt()
    at_once = lane.doubted, lane.suspected.is_set()
    lane.passed_s -= CHECKED_FOR_S
    lane.doubt()

    assert first == (True, True)
    assert at_once == (False, False)
    assert lane.doubted


# --- being ready


def test_a_node_that_found_nothing_to_hold_waits_for_nothing() -> None:
    start = Start(within_s=60.0)
    start.begin({}, 0.0)

    assert start.awaited({"simple": SIMPLE}, 1.0) == []


def test_what_was_found_is_awaited_until_the_fleet_knows_of_it_and_never_again() -> None:
    start, found = Start(within_s=60.0), {"simple": SIMPLE, "other": OTHER}
    start.begin(found, 0.0)
    first = start.awaited(found, 1.0)
    start.reported(["simple", "nobody's"])
    second = start.awaited(found, 2.0)
    start.reported(["other"])
    start.begin(found, 3.0)

    assert (first, second) == (["simple", "other"], ["other"])
    assert start.awaited(found, 4.0) == []


def test_what_is_not_wanted_any_more_or_in_another_version_is_not_awaited() -> None:
    start = Start(within_s=60.0)
    start.begin({"simple": SIMPLE, "other": OTHER}, 0.0)
    changed = replace(SIMPLE, bundle_digest="sha256:new")

    assert start.awaited({"simple": changed}, 1.0) == []
    assert start.awaited({"simple": SIMPLE, "other": OTHER}, 2.0) == []


def test_what_takes_longer_than_its_bound_is_not_awaited() -> None:
    start = Start(within_s=60.0)
    start.begin({"simple": SIMPLE}, 100.0)

    assert start.awaited({"simple": SIMPLE}, 159.0) == ["simple"]
    assert start.awaited({"simple": SIMPLE}, 160.0) == []
    assert start.overdue == ["simple"]


@pytest.mark.parametrize(
    ("failed_count", "crashed_count", "given"),
    [(0, 0, False), (2, 1, False), (3, 0, True), (2, 2, True)],
)
def test_a_model_is_given_up_as_the_scheduler_gives_it_up(
    failed_count: int, crashed_count: int, given: bool
) -> None:
    assert given_up(failed_count, crashed_count) is given


# --- accounting


def test_prompt_tokens_are_told_by_every_response_and_generated_ones_add_up() -> None:
    count = TokenCount()
    for _ in range(3):
        count.add([7], [2], [4])

    assert (count.input_tokens, count.output_tokens, count.cached_tokens) == (7, 6, 4)


@given(st.lists(st.sampled_from(["add", "store"]), max_size=60))
def test_cost_records_keep_their_numbers_whatever_is_dropped(events: list[str]) -> None:
    buffer: MeasuredBuffer[int] = MeasuredBuffer(records_max=5, batch_max=3)
    added = 0
    stored: list[int] = []
    for event in events:
        if event == "add":
            added += 1
            buffer.add(added)
        else:
            first, records = buffer.batch()
            buffer.stored(first, len(records))
            stored += records

            assert records == list(range(first, first + len(records)))

    assert added == len(stored) + len(buffer) + buffer.dropped_count
    assert stored == sorted(set(stored))


def test_records_dropped_while_a_batch_was_being_stored_are_not_removed_twice() -> None:
    buffer: MeasuredBuffer[int] = MeasuredBuffer(records_max=2, batch_max=2)
    for number in (1, 2):
        buffer.add(number)
    first, records = buffer.batch()
    buffer.add(3)

    buffer.stored(first, len(records))

    assert buffer.batch() == (3, [3])


@given(
    st.lists(st.tuples(st.floats(0.01, 0.5), st.sampled_from(["began", "ended", "read"]))),
    st.floats(10.0, 500.0),
)
def test_no_more_energy_is_charged_than_was_drawn_up_to_one_reading(
    events: list[tuple[float, str]], power_mw: float
) -> None:
    shares = EnergyShares(0.0, 0.0)
    now_s, charged_mj, levels = 0.0, 0, list[float]()
    longest_unread_s, read_s, most = 0.0, 0.0, 1
    for passed_s, event in events:
        now_s += passed_s
        longest_unread_s = max(longest_unread_s, now_s - read_s)
        if event == "began":
            levels.append(shares.began(now_s))
            most = max(most, len(levels))
        elif event == "ended" and levels:
            charged_mj += shares.ended(now_s, levels.pop())
        elif event == "read":
            read_s = now_s
            shares.read(now_s, now_s * power_mw)
    while levels:
        charged_mj += shares.ended(now_s, levels.pop())

    slack_mj = longest_unread_s * power_mw * most * 2 + len(events)
    assert charged_mj <= now_s * power_mw + slack_mj


def test_two_attempts_side_by_side_share_the_energy() -> None:
    shares = EnergyShares(0.0, 0.0)
    shares.read(1.0, 1000.0)
    first, second = shares.began(1.0), shares.began(1.0)
    shares.read(2.0, 2000.0)

    charged = (shares.ended(2.0, first), shares.ended(2.0, second))

    assert charged == (500, 500)


def test_energy_drawn_while_idle_is_charged_to_nobody() -> None:
    shares = EnergyShares(0.0, 0.0)
    level = shares.began(9.0)
    shares.read(10.0, 10_000.0)

    assert shares.ended(10.0, level) == 1000


@given(st.integers(1, 10_000))
def test_the_pause_grows_to_its_cap(failures: int) -> None:
    pause_s = backoff_s(failures, first_s=0.5, cap_s=60.0)

    assert 0.5 <= pause_s <= 60.0


# --- why a model does not load

_WHY = "Internal: ValueError: no weights\n\nAt:\n  /repository/m/1/model.py(3): initialize"
_UNREADABLE = "failed to load 'm', failed to poll from model repository"
_AT_LOAD = "load failed for model 'm': version 1 is at UNAVAILABLE state: "


@pytest.mark.parametrize(
    ("refusal", "complaint", "reason"),
    [
        # As Triton 2.51 says it of a Python model that raises: in its answer, and in its log.
        (
            f"{_AT_LOAD}{_WHY}\n;\n",
            f"failed to load 'm' version 1: {_WHY}\n",
            f"{_AT_LOAD}{_WHY}",
        ),
        (f"{_AT_LOAD}{_WHY}\n;\n", "", f"{_AT_LOAD}{_WHY}"),
        (
            _UNREADABLE,
            "Poll failed for model directory 'm': no such backend\n",
            f"{_UNREADABLE}; Triton says: Poll failed for model directory 'm': no such backend",
        ),
        ("failed to load 'm'", "failed to load 'm'", "failed to load 'm'"),
        ("failed to load 'm'", "no more: ", "failed to load 'm'; Triton says: no more:"),
    ],
)
def test_why_a_model_does_not_load_is_said_once(refusal: str, complaint: str, reason: str) -> None:
    assert load_failure(refusal, complaint) == reason
