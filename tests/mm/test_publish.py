from __future__ import annotations

import pytest

from rtsmap.errors import CardError, OptionsError, RunError
from rtsmap.mm.checkpoints import load_weights
from rtsmap.mm.held_out import best_threshold
from rtsmap.mm.publish import PublishOptions, publish
from rtsmap.mm.register import build_network
from rtsmap.mm.stages import averaged_weights, run_recipe
from rtsmap.models import Score, load_bundle, read_scores
from tests.mm.small_recipes import recipe

OPTIONS = PublishOptions(licence="Apache-2.0")
STAGES = {
    "optical": {"kind": "unimodal", "modality": "optical", "loss": "pixels", "steps": 1},
    "fused": {"kind": "multimodal", "steps": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    run_recipe(recipe(folder, stages=STAGES), folder / "run")
    return folder / "run"


def test_a_bundle_holds_the_averaged_weights_and_tells_where_they_are_from(run, tmp_path):
    card = publish(run, "mine", tmp_path / "mine", OPTIONS)
    assert load_bundle(tmp_path / "mine") == card
    network = build_network(card.network, card.spec)
    load_weights(network, card.weights)
    for name, value in averaged_weights(run / "fused").items():
        assert network.state_dict()[name].equal(value.half().to(value.dtype)), name
    assert (card.chip_px, card.overlap_px, card.score_threshold) == (64, 16, 0.5)
    assert card.parameters == sum(p.numel() for p in network.parameters())
    assert "train.pack: 3 images, 6 slumps" in card.training_data
    assert {score.name for score in card.scores} == {"best F1 at IoU 0.3, watched", "mask AP50, watched"}


def test_what_the_user_says_goes_before_what_the_run_says(run, tmp_path):
    (tmp_path / "scores.json").write_text('[{"name": "F1", "value": 1, "data": "d", "command": "c"}]')
    scores = read_scores(tmp_path / "scores.json")
    options = PublishOptions(
        licence="x",
        version="7",
        description="d",
        training_data="t",
        score_threshold=0.25,
        overlap_px=8,
        views=2,
    )
    card = publish(run, "mine", tmp_path / "mine", options, scores=scores)
    assert (card.version, card.description, card.training_data) == ("7", "d", "t")
    assert (card.score_threshold, card.overlap_px, card.network["views"]) == (0.25, 8, 2)
    assert card.scores == (Score("F1", 1.0, "d", "c"),)


def test_what_cannot_be_published_is_refused(run, tmp_path):
    with pytest.raises(RunError, match="holds no training"):
        publish(tmp_path, "mine", tmp_path / "mine", OPTIONS)
    with pytest.raises(OptionsError, match="no stage 'x'; it has optical, fused"):
        publish(run, "mine", tmp_path / "mine", PublishOptions(licence="x", stage="x"))
    with pytest.raises(RunError, match="per-pixel labels only"):
        publish(run, "mine", tmp_path / "mine", PublishOptions(licence="x", stage="optical"))
    with pytest.raises(CardError, match="licence"):
        publish(run, "mine", tmp_path / "mine", PublishOptions(licence=" "))
    hidden = run / "fused" / "last.pt"
    hidden.rename(run / "last.pt")
    with pytest.raises(RunError, match="0 of 1 steps"):
        publish(run, "mine", tmp_path / "mine", OPTIONS)
    (run / "last.pt").rename(hidden)
    (tmp_path / "scores.json").write_text('[{"name": "F1"}]')
    with pytest.raises(CardError, match="'data' is missing"):
        read_scores(tmp_path / "scores.json")


def test_the_threshold_is_that_of_the_best_f1_where_anything_was_right():
    right = {"step": 5, "a_f1_30": 0.5, "a_threshold": 0.4, "b_f1_30": 0.1, "b_threshold": 0.2}
    wrong = {"step": 5, "a_f1_30": 0.0, "a_threshold": 1.0}
    assert best_threshold([wrong, right]) == pytest.approx(0.3)
    assert best_threshold([right, wrong]) == best_threshold([]) == 0.5
