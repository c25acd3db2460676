from __future__ import annotations

import importlib.util

import pytest

from rtsmap.errors import OptionsError
from rtsmap.mm.stages import Teller, run_recipe
from rtsmap.mm.train import read_rows
from tests.mm.small_recipes import recipe, recipe_data


class Stopped(Exception):  # noqa: N818
    pass


def one_stage(folder):
    stages = recipe_data(folder)["stages"]
    return recipe(folder, stages={"optical": {**stages["optical"], "loss": "full", "validate_every": 1}})


def scalars(folder):
    """(tag, step) to value of all events in a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), purge_orphaned_data=False)
    events.Reload()
    found = [(tag, event) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    told = {(tag, event.step): event.value for tag, event in found}
    assert len(told) == len(found), "a step is there twice"
    return told


def test_events_are_the_rows_of_the_logs_also_after_a_stop(tmp_path):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"

    def stop(_stage, row):
        if row["step"] == 3:
            raise Stopped

    # step 3 is logged, but the last checkpoint is that of step 2
    with pytest.raises(Stopped):
        run_recipe(one_stage(tmp_path), run, tell=Teller(row=stop), tensorboard=True)
    run_recipe(one_stage(tmp_path), run, tensorboard=True)
    expected = {
        (f"{group}/{key}", row["step"]): value
        for group, file in (("train", "log.jsonl"), ("held_out", "validation.jsonl"))
        for row in read_rows(run / "optical" / file)
        for key, value in row.items()
        if key != "step"
    }
    found = scalars(run / "tensorboard" / "optical")
    assert {key[1] for key in found} == {1, 2, 3}
    assert any(tag.startswith("held_out/") for tag, _ in found)
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_the_package_nothing_is_trained_and_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(OptionsError, match=r"pip install 'rtsmap\[tensorboard\]'.*log\.csv"):
        run_recipe(one_stage(tmp_path), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
