from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsmap import models
from rtsmap.errors import CardError, ModelError, WeightsError
from rtsmap.models import (
    ModelCard,
    Score,
    find_bundle,
    list_bundles,
    read_card,
    verify,
    write_bundle,
    write_calibrated,
)
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))


def safetensors_file(path: Path, values: int = 12) -> Path:
    """A file in the safetensors format, written by hand: length, JSON header, bytes."""
    entry = {"dtype": "F16", "shape": [values], "data_offsets": [0, 2 * values]}
    header = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * values))
    return path


def bundle(folder: Path, **changes) -> ModelCard:
    folder.parent.mkdir(parents=True, exist_ok=True)
    weights = safetensors_file(folder.with_name("source.safetensors"))
    fields = {
        "weights": weights,
        "network": {"embed_dim": 32, "depths": [1, 2], "fusion": "residual"},
        "spec": SPEC,
        "name": "tiny",
        "version": "1.0",
        "description": 'A "tiny" net.\nTwo lines: ä, ☃',
        "licence": "Apache-2.0",
        "training_data": "none",
        "parameters": 12,
        "chip_px": 64,
        "overlap_px": 16,
        "scores": [Score("F1", 0.5, "nothing", "true")],
    }
    return write_bundle(folder, **{**fields, **changes})


def test_written_bundle_reads_back_equal_and_verifies(tmp_path):
    card = bundle(tmp_path / "tiny")
    again = read_card(tmp_path / "tiny")
    assert again == card
    assert again.spec == SPEC
    assert again.description == 'A "tiny" net.\nTwo lines: ä, ☃'
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == [
        "README.md",
        "card.toml",
        "model.json",
        "weights.safetensors",
    ]
    verify(again)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.floats(0, 1))
@settings(deadline=None)
def test_the_toml_writer_agrees_with_the_toml_reader(text, number):
    line = f"a = {models._toml(text)}\nb = {models._toml(number)}\n"
    assert models.tomllib.loads(line) == {"a": text, "b": number}


def test_an_existing_bundle_is_replaced_only_when_allowed(tmp_path):
    bundle(tmp_path / "tiny")
    with pytest.raises(CardError, match="exists"):
        bundle(tmp_path / "tiny", version="2.0")
    assert read_card(tmp_path / "tiny").version == "1.0"
    assert bundle(tmp_path / "tiny", version="2.0", overwrite=True).version == "2.0"


def test_a_bundle_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    bundle(tmp_path / "tiny")
    rename = Path.rename

    def refused(path, target):
        if path.suffix == ".tmp":
            raise PermissionError("the disk says no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        bundle(tmp_path / "tiny", version="2.0", overwrite=True)
    card = read_card(tmp_path / "tiny")
    verify(card)
    assert card.version == "1.0"
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "source.safetensors"}


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.docx").write_text("years")
    with pytest.raises(CardError, match="no bundle"):
        bundle(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.docx").read_text() == "years"


@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_changed_byte_of_the_weights_is_noticed(tmp_path, place):
    card = bundle(tmp_path / "tiny")
    data = bytearray(card.weights.read_bytes())
    data[int(place * len(data))] ^= 1
    card.weights.write_bytes(data)
    with pytest.raises(WeightsError, match="sha256"):
        verify(card)


def test_truncated_and_missing_weights_are_told_apart(tmp_path):
    card = bundle(tmp_path / "tiny")
    card.weights.write_bytes(card.weights.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="incomplete"):
        verify(card)
    card.weights.unlink()
    with pytest.raises(WeightsError, match="missing"):
        verify(card)


def test_a_pickle_is_no_weights_file(tmp_path):
    pickle = tmp_path / "w.safetensors"
    pickle.write_bytes(b"\x80\x04\x95" + bytes(64))
    with pytest.raises(WeightsError, match="not a safetensors"):
        bundle(tmp_path / "tiny", weights=pickle)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a": {"data_offsets": [0, 1]}, "b": {"data_offsets": [0, "x"]}}',
        b'{"a": {"data_offsets": [0, 1]}, "b": {"data_offsets": [0, [1]]}}',
        b" " * (17 << 20) + b"{}",
    ],
    ids=["deep", "a text", "a list", "huge"],
)
def test_a_header_that_cannot_be_is_refused_with_a_sentence(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0")
    with pytest.raises(WeightsError, match="not a safetensors"):
        bundle(tmp_path / "tiny", weights=tmp_path / "w.safetensors")


def test_altered_network_is_refused(tmp_path):
    card = bundle(tmp_path / "tiny")
    (card.folder / "model.json").write_text('{"embed_dim": 64}')
    with pytest.raises(CardError, match=r"model\.json: sha256"):
        read_card(card.folder)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "tiny"', "", "'name' is missing"),
        ('name = "tiny"', 'name = "tiny"\nnickname = "t"', "unknown keys: nickname"),
        ("chip_px = 64", "chip_px = true", "'chip_px' must be int"),
        ("chip_px = 64", 'chip_px = "64"', "'chip_px' must be int"),
        ("overlap_px = 16", "overlap_px = 40", "overlap_px=40"),
        ("score = 0.5", "score = 1.5", "score threshold 1.5"),
        ("mask = 128", "mask = 128\nextra = 1", "unknown keys: extra"),
        ('network = "model.json"', 'network = "../model.json"', "plain name"),
        ('weights = "weights.safetensors"', 'weights = "/etc/passwd"', "plain name"),
        ('name = "red"', 'name = "ruby"', "unknown band 'ruby'"),
        ("resolution_m = 4.0", "", "input spec"),
        ("resolution_m = 4.0", 'resolution_m = "four"', "within 0.05..1000, got 'four'"),
        ("resolution_m = 4.0", "resolution_m = true", "within 0.05..1000, got True"),
        ("mean = 92.0", "mean = nan", "band 'red': mean must be a number within 1e9 of 0, got nan"),
        ("mean = 92.0", "mean = true", "band 'red': mean must be a number"),
        ("mean = 92.0", "mean = [1]", "band 'red': mean must be a number"),
        ("mean = 92.0", f"mean = 1{'0' * 400}", "band 'red': mean must be a number"),
        ("high = 255.0", "high = inf", "band 'red': high must be a number"),
        ("sd = 28.0", "sd = 1e-300", "band 'red': wanted sd > 0"),
        ('name = "optical"', "name = 5", "modality's name must be a text, got 5"),
        ("[tiles]", "[tiles", "is not TOML"),
        ('command = "true"', 'command = " "', "command"),
        ('name = "tiny"', f"name = {'[' * 5000}", "is not TOML"),
        ("chip_px = 64", f"chip_px = {'9' * 5000}", "is not TOML"),
    ],
)
def test_a_wrong_card_is_refused_with_a_sentence(tmp_path, old, new, says):
    card = bundle(tmp_path / "tiny")
    path = card.folder / "card.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ModelError, match=says):
        read_card(card.folder)


def test_links_out_of_the_bundle_are_refused(tmp_path):
    card = bundle(tmp_path / "tiny")
    elsewhere = tmp_path / "elsewhere.safetensors"
    card.weights.rename(elsewhere)
    card.weights.symlink_to(elsewhere)
    with pytest.raises(WeightsError, match="symbolic link"):
        read_card(card.folder)


def test_a_huge_card_is_not_parsed(tmp_path):
    card = bundle(tmp_path / "tiny")
    with (card.folder / "card.toml").open("a", encoding="utf-8") as stream:
        stream.write("#" * (2 << 20))
    with pytest.raises(CardError, match="too much"):
        read_card(card.folder)


def test_network_must_be_one_flat_object(tmp_path):
    with pytest.raises(CardError, match="flat"):
        bundle(tmp_path / "tiny", network={"neck": {"channels": 8}})


def test_shipped_bundles_are_found_by_name_and_others_by_path(tmp_path, monkeypatch):
    bundle(tmp_path / "shipped" / "tiny")
    bundle(tmp_path / "own")
    monkeypatch.setattr(models, "bundle_roots", lambda: (tmp_path / "shipped",))
    assert list_bundles() == ["tiny"]
    assert find_bundle("tiny") == tmp_path / "shipped" / "tiny"
    assert find_bundle(tmp_path / "own") == tmp_path / "own"
    assert find_bundle(str(tmp_path / "own" / "card.toml")) == tmp_path / "own"
    with pytest.raises(CardError, match="shipped bundles are: tiny"):
        find_bundle("nowhere")


def test_the_home_of_a_stranger_is_no_bundle():
    with pytest.raises(CardError, match="no model bundle '~nobody-of-that-name/x'"):
        find_bundle("~nobody-of-that-name/x")


def test_impossible_cards_cannot_be_made(tmp_path):
    card = bundle(tmp_path / "tiny")
    for change in ({"name": "a/b"}, {"classes": ()}, {"mask_threshold": 0}, {"sha256": "abc"}):
        with pytest.raises(CardError):
            replace(card, **change)


def test_a_temperature_is_written_read_and_limited(tmp_path):
    card = bundle(tmp_path / "tiny")
    assert card.temperature == 1
    text = (card.folder / "card.toml").read_text(encoding="utf-8")
    assert "temperature" not in text
    warm = text.replace("mask = 128", "mask = 128\ntemperature = 1.75")
    (card.folder / "card.toml").write_text(warm, encoding="utf-8")
    assert read_card(card.folder) == replace(card, temperature=1.75)
    (card.folder / "card.toml").write_text(warm.replace("1.75", "0.0"), encoding="utf-8")
    with pytest.raises(CardError, match=r"temperature 0\.0"):
        read_card(card.folder)


def test_a_calibrated_card_is_written_in_place_or_to_a_copy(tmp_path, monkeypatch):
    card = bundle(tmp_path / "tiny")
    before = {path.name: path.read_bytes() for path in card.folder.iterdir()}
    new = Score("precision at score 0.4", 0.8, "two maps", "rtsmap evaluate calibration")
    values = {"score_threshold": 0.4, "temperature": 0.5, "scores": [new]}
    copy = write_calibrated(card, tmp_path / "copy", **values)
    assert {path.name: path.read_bytes() for path in card.folder.iterdir()} == before
    assert sorted(path.name for path in copy.folder.iterdir()) == sorted(before)
    verify(copy)
    assert (copy.score_threshold, copy.temperature) == (0.4, 0.5)
    assert copy.scores[0].data == "nothing; before calibration"
    assert copy.scores[1] == new
    assert copy.identity == card.identity
    own = write_calibrated(card, card.folder, **values)
    assert own == replace(copy, weights=card.weights)
    verify(own)
    monkeypatch.chdir(own.folder)
    here = read_card(Path())
    again = write_calibrated(here, here.folder, score_threshold=0.3, temperature=1.0)
    assert [score.data for score in again.scores] == [
        "nothing; before calibration",
        "two maps; before calibration",
    ]


def test_people_read_of_a_calibration_what_the_card_says(tmp_path):
    card = bundle(tmp_path / "tiny")
    (card.folder / "README.md").write_text("# Mine\n\n## Scores\n\n- F1: 0.5\n", encoding="utf-8")
    new = Score("precision at score 0.4", 0.8, "two maps", "rtsmap evaluate calibration")
    copy = write_calibrated(card, tmp_path / "copy", score_threshold=0.4, temperature=0.5, scores=[new])
    text = (copy.folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Mine\n\n## Scores\n\n- F1: 0.5\n\n## Calibration\n")
    assert "score of 0.4 on, with a temperature of 0.5" in text
    assert "precision at score 0.4: 0.8 on two maps" in text
    write_calibrated(copy, copy.folder, score_threshold=0.3, temperature=1.0)
    again = (copy.folder / "README.md").read_text(encoding="utf-8")
    assert again.count("## Calibration") == 1
    assert "0.4" not in again


def test_a_card_is_not_written_where_it_would_harm(tmp_path, monkeypatch):
    card = bundle(tmp_path / "shipped" / "tiny")
    (tmp_path / "other").mkdir()
    with pytest.raises(CardError, match="exists"):
        write_calibrated(card, tmp_path / "other", score_threshold=0.4, temperature=2.0)
    monkeypatch.setattr(models, "bundle_roots", lambda: (tmp_path / "shipped",))
    text = (card.folder / "card.toml").read_bytes()
    with pytest.raises(CardError, match="shipped bundle"):
        write_calibrated(card, card.folder, score_threshold=0.4, temperature=2.0)
    with pytest.raises(CardError, match="temperature"):
        write_calibrated(card, tmp_path / "new", score_threshold=0.4, temperature=0.0)
    card.weights.write_bytes(card.weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="sha256"):
        write_calibrated(card, tmp_path / "new", score_threshold=0.4, temperature=2.0)
    assert (card.folder / "card.toml").read_bytes() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "shipped"]
