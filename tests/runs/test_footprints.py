from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rtsmap.instances.seams import Instance
from rtsmap.rasters.tiling import Window
from rtsmap.runs import footprints
from rtsmap.runs.footprints import FootprintMaker, FootprintsAhead
from rtsmap.runs.mapping import predict
from rtsmap.runs.spreading import merge_run
from tests.runs.blob_scenes import blob_labels, engine, write_scene
from tests.runs.map_content import content
from tests.runs.test_looking import MoodyDetector
from tests.runs.test_mapping import EXACT

SLUMP = Instance(
    score=0.8,
    window=Window(3, 4, 6, 9),
    mask=np.full((3, 5), 200, np.uint8),
    n_parts=2,
    seam_unconfirmed=False,
    oversized=False,
    modalities=("optical",),
    pixel=(4, 6),
)


class Maker:
    """Makes numbers, one more each time."""

    def __init__(self):
        self.asked = []

    def make(self, ranked):
        self.asked.append(ranked)
        return len(self.asked)


@pytest.fixture
def maker():
    return Maker()


@pytest.fixture
def ahead(maker):
    begun = FootprintsAhead(lambda: maker)
    yield begun
    begun.close()


def test_what_was_begun_is_not_made_again(maker, ahead):
    ahead.begin(SLUMP)
    ahead.begin(replace(SLUMP, mask=SLUMP.mask.copy()))
    assert ahead.make((0, replace(SLUMP, mask=SLUMP.mask.copy()))) == 1
    assert maker.asked == [(0, SLUMP)]


@pytest.mark.parametrize(
    "other",
    [
        (1, SLUMP),
        (0, replace(SLUMP, score=0.81)),
        (0, replace(SLUMP, mask=np.full((3, 5), 201, np.uint8))),
        (0, replace(SLUMP, window=Window(3, 5, 6, 10))),
        (0, replace(SLUMP, seam_unconfirmed=True)),
        (0, replace(SLUMP, modalities=("optical", "terrain"))),
    ],
)
def test_anything_else_is(maker, ahead, other):
    ahead.begin(SLUMP)
    assert ahead.make(other) == 2
    assert maker.asked[1] is other


def test_a_failure_comes_when_the_footprint_is_asked_for(ahead, monkeypatch):
    monkeypatch.setattr(Maker, "make", lambda *_: 1 / 0)
    ahead.begin(SLUMP)
    with pytest.raises(ZeroDivisionError):
        ahead.make((0, SLUMP))


def test_footprints_made_early_are_those_of_the_run_directory(tmp_path, monkeypatch):
    scene = write_scene(tmp_path / "scene.tif", blob_labels((300, 340), 4, 30, radius=16))
    moody, early, made = engine(64, 32, MoodyDetector()), [], []
    begin, make = FootprintsAhead.begin, FootprintMaker.make

    def beginning(self, instance):
        early.append(instance)
        begin(self, instance)

    def making(self, ranked):
        made.append(ranked)
        return make(self, ranked)

    monkeypatch.setattr(footprints.FootprintsAhead, "begin", beginning)
    monkeypatch.setattr(footprints.FootprintMaker, "make", making)
    run, first, second = (tmp_path / name for name in ("run", "a.gpkg", "b.gpkg"))
    count = predict(scene.path, out=first, model=moody, options=EXACT, run_dir=run).footprints
    assert len(early) > count / 2
    assert len(made) < count + len(early) / 2
    merge_run(run, second, model=moody)
    assert content(first) == content(second)
