"""Which frames count, when an attempt is lost, how often it is tried."""

from __future__ import annotations

from busbar_gateway.domain.attempts import TRIES_MAX, UNHEARD_MAX, Attempts, Frame
from busbar_gateway.domain.sampling import Verdict, decide, worth_keeping


def begun(times: int = 1) -> Attempts:
    attempts = Attempts()
    for _ in range(times):
        attempts.begin(0.0)
    return attempts


def test_a_frame_of_an_older_attempt_never_counts() -> None:
    attempts = begun(2)

    assert attempts.frame(1, "n1", 1.0) is Frame.OBSOLETE
    assert attempts.frame(2, "n2", 1.0) is Frame.COUNTS
    assert attempts.node == "n2"


def test_chunks_count_once_and_in_order() -> None:
    attempts = begun()

    verdicts = [attempts.frame(1, "n1", 1.0, sequence) for sequence in (0, 1, 1, 0, 3)]

    assert verdicts == [Frame.COUNTS, Frame.COUNTS, Frame.REPEATED, Frame.REPEATED, Frame.GAP]


def test_a_second_node_cannot_mix_its_chunks_in() -> None:
    attempts = begun()
    attempts.frame(1, "n1", 1.0, 0)

    assert attempts.frame(1, "n2", 1.0, 1) is Frame.OBSOLETE
    assert attempts.frame(1, "n1", 1.0, 1) is Frame.COUNTS


def test_a_redelivered_attempt_may_move_before_its_first_chunk() -> None:
    attempts = begun()
    attempts.frame(1, "n1", 1.0)

    assert attempts.frame(1, "n2", 1.5, 0) is Frame.COUNTS
    assert attempts.node == "n2"


def test_silence_loses_an_attempt_only_once_it_was_taken() -> None:
    attempts = begun()

    assert not attempts.lost(60.0, taken=False)
    assert not attempts.lost(0.9, taken=True)
    assert attempts.lost(1.1, taken=True)
    attempts.frame(1, "n1", 10.0)
    assert not attempts.lost(12.9, taken=True)
    assert attempts.lost(13.1, taken=True)


def test_tries_are_bounded_and_a_started_answer_is_never_begun_again() -> None:
    attempts = begun()
    for tries in range(1, TRIES_MAX):
        attempts.tries = tries
        assert attempts.may_retry(resumable=False)
        assert attempts.backoff_s() > 0
    attempts.tries = TRIES_MAX
    assert not attempts.may_retry(resumable=False)
    attempts.tries = 1
    attempts.delivering = True
    assert not attempts.may_retry(resumable=False)


def test_sampling_follows_the_ratio_and_a_sampled_parent() -> None:
    assert decide(0.0, 0.0, parent_sampled=False) is Verdict.UNTRACED
    assert decide(1.0, 0.999, parent_sampled=False) is Verdict.TRACED
    assert decide(0.1, 0.1, parent_sampled=False) is Verdict.UNTRACED
    assert decide(0.0, 0.5, parent_sampled=True) is Verdict.TRACED


def test_failures_and_slow_first_bytes_are_kept() -> None:
    def kept(first_byte_s: float | None, total_s: float, *, failed: bool = False) -> bool:
        return worth_keeping(
            ours_failed=failed, first_byte_s=first_byte_s, slow_after_s=2.0, total_s=total_s
        )

    assert kept(0.1, 0.1, failed=True)
    assert kept(2.5, 3.0)
    assert kept(None, 2.5)
    assert not kept(0.1, 30.0)
    assert not kept(None, 0.1)


def test_a_node_that_swallows_work_unheard_uses_up_none_of_the_tries() -> None:
    attempts = begun()
    attempts.tries = TRIES_MAX - 1

    for _ in range(UNHEARD_MAX):
        assert attempts.may_retry(resumable=False)
        attempts.tried(unheard=True)

    assert not attempts.may_retry(resumable=False)
    assert attempts.tries == TRIES_MAX - 1
