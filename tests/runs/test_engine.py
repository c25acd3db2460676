"""Engines: planned here, run elsewhere."""

from __future__ import annotations

import pytest

from rtsmap.errors import EngineError, OptionsError
from rtsmap.mm.detector import count_gpus
from rtsmap.runs.engine import engine_of, engine_to_plan

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
