"""Engines: planned here, run elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rtsmap.errors import EngineError, OptionsError
from rtsmap.mm.detector import count_gpus
from rtsmap.models import load_bundle
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN_FOR_TRAINING, InputSpec
from rtsmap.runs.engine import engine_at_rest, engine_of, engine_to_plan

without_gpu = pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")


@without_gpu
def test_a_run_is_planned_for_gpus_that_only_its_workers_have():
    planned = engine_to_plan(None, "cuda", "bf16")
    assert (planned.identity["device"], planned.identity["precision"]) == ("cuda", "bf16")
    with pytest.raises(EngineError, match="cannot use device 'cuda'"):
        engine_of(None, "cuda", "bf16")


@without_gpu
def test_a_precision_that_only_a_gpu_can_tell_must_be_said():
    with pytest.raises(OptionsError, match="--precision bf16"):
        engine_to_plan(None, "cuda")


def test_where_the_device_is_here_planning_takes_what_working_takes():
    assert engine_to_plan(None, "cpu").identity == engine_of(None, "cpu").identity


def test_views_are_those_of_the_model_unless_told():
    own = engine_of(None, "cpu")
    views = load_bundle().network.get("views", 1)
    assert engine_of(None, "cpu", views=views).identity == own.identity
    other = 1 if views == 4 else 4
    engine = engine_of(None, "cpu", views=other)
    assert engine.identity == {**own.identity, "views": other}
    assert engine.load().network.config.views == other
    assert own.load().network.config.views == views
    assert engine_at_rest(None, engine.identity).identity == engine.identity


def test_views_that_a_model_cannot_be_shown_are_refused_before_anything_is_read():
    with pytest.raises(OptionsError, match="views 3: wanted 1, 2 or 4"):
        engine_of(None, "cpu", views=3)
    with pytest.raises(OptionsError, match="views 3"):
        engine_to_plan(None, "cuda", "bf16", views=3)
    steep = replace(load_bundle(), spec=InputSpec(4.0, (OPTICAL_RGB, TERRAIN_FOR_TRAINING)))
    with pytest.raises(OptionsError, match="views 4: the bands rise_right"):
        engine_of(steep, "cpu", views=4)
