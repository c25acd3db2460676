from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rtsmap.errors import CardError, InputError, OptionsError
from rtsmap.instances.calibration import tempered
from rtsmap.models import read_card, verify
from rtsmap.runs.calibrating import (
    AS_MAPPED,
    MENDED,
    MapOrigin,
    calibrate_maps,
    check_card,
    facts_of,
    write_calibrated_card,
    write_reliability,
)
from rtsmap.runs.diagrams import draw_precision_recall, draw_reliability
from rtsmap.runs.evaluating import evaluate_maps, write_curves
from rtsmap.vectors.geopackage import read_layers, write_layers
from rtsmap.vectors.united import SceneMap, unite_maps
from tests.runs.test_evaluating import slump, written_labels, written_map
from tests.test_models import bundle

RIGHT = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4, 0.3)
WRONG = (0.65, 0.5, 0.35, 0.2, 0.15, 0.1, 0.05)


def scored_map(path, scores, weights="", temperature=1.0, min_score=0.05):
    """A map with footprints of these scores at the places 0, 1, 2..., and a record of what made it."""
    written_map(path, [slump(number) for number in range(len(scores))])
    layers = read_layers(path)
    order = np.argsort([footprint_number(g) for g in layers.footprints.geometry])
    layers.footprints.loc[layers.footprints.index[order], "score"] = np.array(scores)
    record = {
        "plan": {"model": {"weights_sha256": weights}},
        "merging": {"min_score": tempered(min_score, 1 / temperature)},
        "temperature": temperature,
    }
    write_layers(path, replace(layers, run_record=record), overwrite=True)
    return path


def footprint_number(polygon):
    distances = [polygon.centroid.distance(slump(number).centroid) for number in range(15)]
    return int(np.argmin(distances))


@pytest.fixture
def pair(tmp_path):
    """Fifteen footprints, the first eight of them with a true slump."""
    labels = written_labels(tmp_path / "labels.gpkg", [slump(number) for number in range(len(RIGHT))])
    return scored_map(tmp_path / "map.gpkg", RIGHT + WRONG), labels


def test_maps_are_calibrated(pair, tmp_path):
    calibration = calibrate_maps([pair[0]], [pair[1]], precision=0.7, block_km=0.5, resamples=50)
    assert sorted(calibration.outcomes.scores[calibration.outcomes.right]) == pytest.approx(sorted(RIGHT))
    assert calibration.outcomes.slumps == 8
    claim, mended = calibration.claims[AS_MAPPED], calibration.claims[MENDED]
    # 8 of the 11 from 0.3 on are right, and 8 of the 12 from 0.2 on, which is too few
    assert (claim.reached, claim.threshold, claim.footprints, claim.true) == (True, 0.3, 11, 8)
    assert (mended.footprints, mended.true) == (11, 8)
    low, high = tempered(np.array([0.2, 0.3]), calibration.temperature)
    assert low < mended.threshold <= high
    low, high = calibration.figures["temperature"].interval
    assert low <= calibration.temperature <= high
    assert calibration.figures["log_loss_mended"].value <= calibration.figures["log_loss"].value
    facts = json.loads(json.dumps(facts_of(calibration)))
    assert (facts["footprints"], facts["true"], facts["is_mended"]) == (15, 8, True)
    write_reliability(tmp_path / "table.csv", calibration)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in (AS_MAPPED, MENDED):
        assert sum(int(row["count"]) for row in rows if row["scores"] == name) == 15


def test_a_precision_out_of_reach_is_said_to_be(pair):
    claim = calibrate_maps([pair[0]], [pair[1]], precision=1.0, resamples=1).claims[AS_MAPPED]
    assert not claim.reached
    assert claim.footprints >= 10
    assert claim.precision < 1


def test_several_maps_and_one_file_of_labels(pair, tmp_path):
    two = [pair[0], scored_map(tmp_path / "more.gpkg", RIGHT[:4], min_score=0.45)]
    calibration = calibrate_maps(two, [pair[1]], resamples=1)
    # the second map knows nothing below 0.45, so nothing below counts
    assert len(calibration.outcomes.scores) == 4 + sum(score >= 0.45 for score in RIGHT + WRONG)
    assert any("nothing below a score of 0.45" in note for note in calibration.notes)
    with pytest.raises(OptionsError, match="2 maps, but 3 files of labels"):
        calibrate_maps(two, [pair[1]] * 3)
    empty = scored_map(tmp_path / "empty.gpkg", ())
    with pytest.raises(InputError, match="no footprint"):
        calibrate_maps([empty], [pair[1]])


def test_a_map_remembers_what_made_it(tmp_path):
    origin = MapOrigin.of(scored_map(tmp_path / "map.gpkg", RIGHT, "ab", temperature=2.0, min_score=0.1))
    assert (origin.weights_sha256, origin.temperature) == ("ab", 2.0)
    assert origin.min_score == pytest.approx(0.1)
    old = MapOrigin.of(written_map(tmp_path / "old.gpkg", [slump(0)]))
    assert old == MapOrigin("", 1.0, 0.0)


def test_a_map_of_many_remembers_what_its_scenes_have_in_common(tmp_path):
    def united(*temperatures):
        names = [f"{number}_{warm}" for number, warm in enumerate(temperatures)]
        maps = [
            scored_map(tmp_path / f"{name}.gpkg", RIGHT, "ab", temperature=warm, min_score=0.1)
            for name, warm in zip(names, temperatures, strict=True)
        ]
        scenes = [SceneMap(path, name, None) for path, name in zip(maps, names, strict=True)]
        out = tmp_path / f"{len(temperatures)}_{max(temperatures)}.gpkg"
        unite_maps(scenes, out, rule="keep", record={"scenes": names})
        return out, MapOrigin.of(maps[0])

    out, alone = united(2.0, 2.0)
    assert MapOrigin.of(out) == alone
    with pytest.raises(InputError, match="no temperature and no thresholds in common"):
        MapOrigin.of(united(1.0, 3.0)[0])


def test_the_card_gets_threshold_and_temperature(pair, tmp_path):
    card = bundle(tmp_path / "own")
    path = scored_map(tmp_path / "m.gpkg", RIGHT + WRONG, card.sha256)
    target = check_card(card, [path])
    assert target == card.folder
    calibration = calibrate_maps([path], [pair[1]], precision=0.7, resamples=1)
    changed = write_calibrated_card(card, calibration, target, "rtsmap evaluate calibration m.gpkg")
    verify(changed)
    assert changed == read_card(card.folder)
    assert changed.temperature == pytest.approx(calibration.temperature)
    assert changed.score_threshold == calibration.claims[MENDED].threshold
    assert [score.name.split()[0] for score in changed.scores] == ["F1", "precision", "expected"]


def test_calibrating_again_ends_at_the_same_temperature(pair, tmp_path):
    card = bundle(tmp_path / "own")
    scores = np.array(RIGHT + WRONG)
    raw = scored_map(tmp_path / "raw.gpkg", scores, card.sha256)
    warm = scored_map(
        tmp_path / "warm.gpkg", tempered(scores, 1.7), card.sha256, temperature=1.7, min_score=0.04
    )
    cards = [
        write_calibrated_card(
            card, calibrate_maps([path], [pair[1]], precision=0.7, resamples=1), tmp_path / path.stem, "true"
        )
        for path in (raw, warm)
    ]
    assert cards[0].temperature == pytest.approx(cards[1].temperature, rel=1e-6)
    assert cards[0].score_threshold == cards[1].score_threshold


def test_a_card_is_not_calibrated_on_strange_maps_or_for_nothing(pair, tmp_path):
    card = bundle(tmp_path / "own")
    with pytest.raises(CardError, match=r"made by no model it names, not by tiny"):
        check_card(card, [pair[0]])
    own = scored_map(tmp_path / "own.gpkg", RIGHT + WRONG, card.sha256)
    warm = scored_map(tmp_path / "warm.gpkg", RIGHT, card.sha256, temperature=2.0)
    with pytest.raises(CardError, match="different temperatures"):
        check_card(card, [own, warm])
    with pytest.raises(CardError, match="--card-out"):
        check_card(card, [own], tmp_path)
    before = (card.folder / "card.toml").read_bytes()
    out_of_reach = calibrate_maps([own], [pair[1]], precision=1.0, resamples=1)
    with pytest.raises(CardError, match="precision is not reached"):
        write_calibrated_card(card, out_of_reach, card.folder, "true")
    all_right = scored_map(tmp_path / "right.gpkg", RIGHT[:6], card.sha256)
    hopeless = calibrate_maps([all_right], [pair[1]], resamples=1)
    assert not hopeless.is_mended
    assert any("no temperature mends" in note for note in hopeless.notes)
    with pytest.raises(CardError, match="no temperature fits"):
        write_calibrated_card(card, hopeless, card.folder, "true")
    assert (card.folder / "card.toml").read_bytes() == before


def test_diagrams_show_what_they_are_given(pair, tmp_path):
    calibration = calibrate_maps([pair[0]], [pair[1]], resamples=1)
    draw_reliability(tmp_path / "r.png", calibration.tables, title="r", threshold=0.5)
    few = {name: table[:1] for name, table in calibration.tables.items()}
    draw_reliability(tmp_path / "few.png", few, title="r", threshold=0.5)
    curves = evaluate_maps([pair]).curves
    draw_precision_recall(tmp_path / "c.png", curves, title="c")
    inked = {name: coloured_px(tmp_path / f"{name}.png") for name in ("r", "few", "c")}
    assert inked["r"] > 1.2 * inked["few"] > 500
    assert inked["c"] > 500
    write_curves(tmp_path / "c.csv", curves)
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 15
    last = rows[-1]
    assert (last["iou"], last["footprints"], last["true"], float(last["recall"])) == ("0.5", "15", "8", 1.0)


def coloured_px(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int((pixels.max(axis=2) - pixels.min(axis=2) > 60).sum())
