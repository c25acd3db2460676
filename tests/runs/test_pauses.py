"""Whoever waits sees what others finish within a tenth of the time that it took."""

from itertools import accumulate

import pytest

from rtsmap.runs import pauses
from rtsmap.runs.pauses import Pauses


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(pauses.time, "sleep", slept.append)
    return slept


def test_a_pause_adds_a_tenth_to_what_was_waited_and_stays_within_limits(slept_s: list[float]) -> None:
    waiting = Pauses()
    for _ in range(200):
        waiting.sleep()
    for waited_s, pause_s in zip(accumulate(slept_s, initial=0.0), slept_s, strict=False):
        assert 0.05 <= pause_s <= 2.0
        assert pause_s <= max(0.05, 0.1 * waited_s)
    assert slept_s[-1] == 2.0


def test_waiting_begins_anew_after_something_came(slept_s: list[float]) -> None:
    waiting = Pauses()
    for _ in range(100):
        waiting.sleep()
    waiting.begin_anew()
    waiting.sleep()
    assert slept_s[-2:] == [2.0, 0.05]
