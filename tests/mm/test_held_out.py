from __future__ import annotations

import numpy as np
import pytest

from rtsmap.instances.detections import Detection
from rtsmap.mm.held_out import HeldOut
from rtsmap.mm.samples import SampleOptions
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.tiling import Window
from tests.mm.labelled import packed

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))


def test_what_misses_a_limit_takes_no_slump_from_what_reaches_it(tmp_path, monkeypatch):
    # the first slump lies in rows 20 to 44 and columns 10 to 40
    loose = Detection(0.9, Window(20, 10, 44, 22), np.full((24, 12), 255, np.uint8), 0)
    tight = Detection(0.8, Window(20, 10, 44, 37), np.full((24, 27), 255, np.uint8), 0)
    held_out = HeldOut.cut({"watched": packed(tmp_path)[:1]}, SPEC, SampleOptions(chip_px=96), 8)
    monkeypatch.setattr(HeldOut, "detections", lambda *_: {"watched": [[tight, loose]]})
    scores = held_out.scores(None, "cpu")
    assert len(held_out.sets["watched"][0].masks) == 2
    # the loose one takes the slump where 0.3 will do, and is a false alarm where 0.5 is wanted
    assert scores["watched_f1_30"] == pytest.approx(2 / 3)
    assert scores["watched_threshold"] == 0.9
    assert scores["watched_f1_50"] == pytest.approx(2 / 4)
    assert scores["watched_ap50"] == pytest.approx(0.25)
