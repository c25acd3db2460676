from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtsmap.instances.detections import Detection
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.chips import Chip
from rtsmap.runs.mapping import predict
from rtsmap.vectors.geopackage import read_map
from tests.runs.blob_scenes import blob_labels, engine, write_scene
from tests.runs.map_content import content, rows
from tests.runs.test_mapping import EXACT, CountingDetector


@dataclass(frozen=True, slots=True)
class MoodyDetector:
    """Finds blobs, the more certain the nearer they lie to the middle of the chip, as networks do."""

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        found = ThresholdDetector(low=160, high=255).detect(chips)
        return [[_moody(part, chip) for part in parts] for chip, parts in zip(chips, found, strict=True)]


def _moody(part: Detection, chip: Chip) -> Detection:
    read, seen = chip.tile.read, part.window
    off = max(
        abs(read.row0 + read.row1 - seen.row0 - seen.row1), abs(read.col0 + read.col1 - seen.col0 - seen.col1)
    )
    return replace(part, score=float(np.clip(1 - 0.4 * off / max(read.shape), 0.3, 1)))


@dataclass
class FailingLooks:
    """Finds blobs on tiles, but fails on every look, which are numbered after the tiles."""

    tiles: int
    failed: list[int] = field(default_factory=list)

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        looks = [chip.tile.index for chip in chips if chip.tile.index >= self.tiles]
        self.failed += looks
        if looks:
            raise RuntimeError("out of memory")
        return ThresholdDetector(low=160, high=255).detect(chips)


@given(seed=st.integers(0, 1000), origins=st.tuples(st.integers(0, 63), st.integers(0, 63)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_scores_do_not_depend_on_where_the_tiles_fall(tmp_path_factory, seed, origins):
    folder = tmp_path_factory.mktemp("run")
    scene = write_scene(folder / "scene.tif", blob_labels((150, 170), seed, 12, radius=16))
    moody = engine(64, 32, MoodyDetector())
    for origin in origins:
        options = replace(EXACT, origin_px=origin)
        predict(scene.path, out=folder / f"{origin}.gpkg", model=moody, options=options, overwrite=True)
    one, other = (read_map(folder / f"{origin}.gpkg") for origin in origins)
    assert len(one) == scene.labels.max()
    assert rows(one, without=("n_parts",), digits=6) == rows(other, without=("n_parts",), digits=6)


def test_without_second_looks_they_do(tmp_path):
    """What the law above is worth: the same detector, the same scene."""
    scene = write_scene(tmp_path / "scene.tif", blob_labels((150, 170), 1, 12, radius=16))
    scores = []
    for origin in (0, 21):
        options = replace(EXACT, origin_px=origin, second_look=False)
        out = tmp_path / f"{origin}.gpkg"
        predict(scene.path, out=out, model=engine(64, 32, MoodyDetector()), options=options)
        scores.append(sorted(read_map(out)["score"]))
    assert scores[0] != pytest.approx(scores[1], abs=0.02)


@given(seed=st.integers(0, 1000), chip=st.integers(24, 80))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_detector_that_needs_no_context_gains_nothing(tmp_path_factory, seed, chip):
    folder = tmp_path_factory.mktemp("run")
    scene = write_scene(folder / "scene.tif", blob_labels((120, 150), seed, 10))
    for look in (True, False):
        options = replace(EXACT, second_look=look)
        predict(scene.path, out=folder / f"{look}.gpkg", model=engine(chip, chip // 4), options=options)
    one, other = (read_map(folder / f"{look}.gpkg") for look in (True, False))
    same = ("n_parts", "seam_unconfirmed")
    assert rows(one, without=same, digits=6) == rows(other, without=same, digits=6)


def test_other_thresholds_need_no_network(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", blob_labels((150, 170), 3, 20, radius=16))
    first = CountingDetector()
    run = tmp_path / "run"
    predict(scene.path, out=tmp_path / "a.gpkg", model=engine(detector=first), run_dir=run)
    assert first.seen
    again = CountingDetector()
    options = replace(EXACT, min_score=0.7)
    predict(scene.path, out=tmp_path / "b.gpkg", model=engine(detector=again), options=options, run_dir=run)
    assert again.seen == []


def test_where_looks_fail_the_tiles_are_believed(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", blob_labels((150, 170), 3, 20, radius=16))
    plain = replace(EXACT, second_look=False)
    report = predict(scene.path, out=tmp_path / "plain.gpkg", model=engine(), options=plain)
    failing = FailingLooks(report.tiles)
    told = predict(scene.path, out=tmp_path / "failing.gpkg", model=engine(detector=failing), options=EXACT)
    assert failing.failed
    assert any("second looks failed; their slumps are mapped as the tiles saw" in n for n in told.notes)
    one, other = (read_map(tmp_path / f"{name}.gpkg") for name in ("plain", "failing"))
    assert rows(one, without=(), digits=6) == rows(other, without=(), digits=6)


def test_discarded_runs_leave_no_looks(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", blob_labels((150, 170), 3, 20, radius=16))
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=EXACT)
    before = content(tmp_path / "m.gpkg")
    predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(), options=EXACT, overwrite=True, discard_run=True
    )
    assert content(tmp_path / "m.gpkg") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gpkg", "scene.tif"]
