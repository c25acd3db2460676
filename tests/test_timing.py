"""Stages count for themselves only, in every thread, and nothing is counted unless it is asked for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtsmap.timing import LOOKS, Ledger, in_stage, measuring, stage


def work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@stage("inner")
def inner() -> None:
    work(0.03)


def test_a_stage_within_a_stage_counts_for_itself_only():
    ledger = Ledger()
    with measuring(ledger), stage("outer"):
        work(0.02)
        inner()
        inner()
    assert ledger.times == {"inner": 2, "outer": 1}
    # what stages add up to is what the thread did, whatever is inside of what
    assert sum(ledger.cpu_s.values()) <= ledger.total_cpu_s + 1e-3
    assert ledger.cpu_s["inner"] >= 0.06
    assert 0.02 <= ledger.cpu_s["outer"] <= ledger.total_cpu_s - 0.06 + 1e-3


def test_threads_add_up_and_what_is_in_no_stage_is_elsewhere():
    ledger = Ledger()
    with measuring(ledger):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: inner(), range(6)))
        work(0.02)
    assert ledger.times == {"inner": 6}
    assert ledger.cpu_s["inner"] >= 0.18
    assert ledger.elsewhere_s >= 0.019
    assert ledger.total_cpu_s == pytest.approx(ledger.cpu_s["inner"] + ledger.elsewhere_s)
    assert ledger.lines()[0].startswith("stage")
    assert len(ledger.lines()) == 4


def test_nothing_is_counted_unless_asked_and_errors_pass_through():
    ledger = Ledger()
    inner()
    with pytest.raises(KeyError), measuring(ledger), stage("broken"):
        raise KeyError
    inner()
    assert ledger.times == {"broken": 1}


def test_items_and_what_is_done_again():
    ledger = Ledger()
    with measuring(ledger), stage(LOOKS):
        inner()
        assert list(in_stage("making", iter("abc"))) == ["a", "b", "c"]
    assert ledger.times == {"inner again": 1, "making again": 4, "looks": 1}
