"""Chips that were seen before a command was stopped are not seen again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rtsmap.errors import InputError
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.runs import chip_scores
from rtsmap.runs.chip_journal import JOURNAL, ChipJournal
from rtsmap.runs.npz_chips import predict_chips
from tests.rasters.test_eight_bands import eight
from tests.runs.blob_scenes import engine
from tests.runs.test_npz_chips import COLOURS_AND_MORE

FOUND = {7: [{"image_id": 7, "score": 0.5}], 9: []}


class Stopped:
    """Counts the chips it sees; Ctrl-C comes when it is called for the `last`th time."""

    def __init__(self, last: int = 99) -> None:
        self.finder = ThresholdDetector(low=230, high=255)
        self.last, self.calls, self.chips = last, 0, 0

    def detect(self, chips):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        self.chips += len(chips)
        return self.finder.detect(chips)


def finds(detector):
    return engine(64, 0, detector, COLOURS_AND_MORE)


@pytest.fixture
def chips(tmp_path, monkeypatch):
    monkeypatch.setattr(chip_scores, "_BATCH", 2)
    (tmp_path / "chips").mkdir()
    for number in range(1, 8):
        array = eight((40, 50), number)
        array[10:20, 5 : 10 + number, 0] = 250
        np.savez(tmp_path / "chips" / f"{number}.npz", image=array)
    return tmp_path / "chips"


def test_what_is_added_is_there_for_the_next_command(tmp_path):
    ChipJournal(tmp_path / "r.json", {"model": 1}).add(FOUND)
    again = ChipJournal(tmp_path / "r.json", {"model": 1})
    assert again.found == FOUND
    assert not again.was_of_another
    again.remove()
    assert not list(tmp_path.iterdir())


def test_a_line_that_was_cut_off_counts_as_none(tmp_path):
    journal = ChipJournal(tmp_path / "r.json", {})
    journal.add(FOUND)
    whole = journal.path.read_bytes()
    for length in range(len(whole) - 1, len(whole) - 30, -1):
        journal.path.write_bytes(whole[:length])
        again = ChipJournal(tmp_path / "r.json", {})
        assert again.found == {7: FOUND[7]}
        again.add({9: []})
        assert ChipJournal(tmp_path / "r.json", {}).found == FOUND


def test_a_journal_of_something_else_is_begun_anew(tmp_path):
    ChipJournal(tmp_path / "r.json", {"model": 1}).add(FOUND)
    other = ChipJournal(tmp_path / "r.json", {"model": 2})
    assert other.was_of_another
    assert not other.found
    assert not ChipJournal(tmp_path / "r.json", {"model": 2}).was_of_another


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / f"r{JOURNAL}").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        ChipJournal(tmp_path / "r.json", {})


def test_a_stopped_command_goes_on_and_ends_as_if_it_had_not_been(tmp_path, chips):
    predict_chips([chips], out=tmp_path / "whole.json", model=finds(Stopped()))
    with pytest.raises(KeyboardInterrupt):
        predict_chips([chips], out=tmp_path / "r.json", model=finds(Stopped(last=3)))
    assert not (tmp_path / "r.json").exists()
    rest = Stopped()
    # thresholds are applied to what was found, so they may change
    report = predict_chips([chips], out=tmp_path / "r.json", model=finds(rest), min_score=0.0)
    assert rest.chips == 7 - 4
    assert any("goes on after 4 chips" in note for note in report.notes)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    assert not list(tmp_path.glob(f"*{JOURNAL}"))


def test_a_chip_that_changed_meanwhile_is_seen_again(tmp_path, chips):
    with pytest.raises(KeyboardInterrupt):
        predict_chips([chips], out=tmp_path / "r.json", model=finds(Stopped(last=3)))
    array = eight((40, 60), 1)
    np.savez(chips / "1.npz", image=array)
    rest = Stopped()
    report = predict_chips([chips], out=tmp_path / "r.json", model=finds(rest))
    assert rest.chips == 7
    assert any("other chips or another model; begun anew" in note for note in report.notes)
