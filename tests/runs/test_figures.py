from __future__ import annotations

import csv
import json

import pytest

from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.map_scores import Figure
from rtsmap.runs.figures import check_outputs, write_figures

FIGURES = {
    "f1_30": Figure(0.5, (0.25, 0.75)),
    "alone": Figure(1.0, None),
    "nothing": Figure(float("nan"), None),
}


def test_json_has_intervals_facts_and_null_for_nothing(tmp_path):
    write_figures(tmp_path / "figures.json", FIGURES, {"slumps": 3})
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["slumps"] == 3
    assert told["figures"] == [
        {"figure": "f1_30", "value": 0.5, "low": 0.25, "high": 0.75},
        {"figure": "alone", "value": 1.0, "low": None, "high": None},
        {"figure": "nothing", "value": None, "low": None, "high": None},
    ]


def test_csv_has_one_row_a_figure(tmp_path):
    write_figures(tmp_path / "figures.csv", FIGURES, {})
    with (tmp_path / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["figure"] for row in rows] == list(FIGURES)
    assert (rows[0]["low"], rows[1]["high"], rows[2]["value"]) == ("0.25", "nan", "nan")


def test_other_suffixes_and_files_that_exist_are_refused(tmp_path):
    with pytest.raises(OptionsError, match=r"\.json or \.csv"):
        write_figures(tmp_path / "figures.xlsx", FIGURES, {})
    write_figures(tmp_path / "figures.csv", FIGURES, {})
    with pytest.raises(InputError, match="overwrite"):
        write_figures(tmp_path / "figures.csv", FIGURES, {})


def test_json_has_a_csv_beside_it_and_neither_is_replaced(tmp_path):
    (tmp_path / "figures.csv").write_text("precious")
    with pytest.raises(InputError, match=r"figures\.csv exists"):
        write_figures(tmp_path / "figures.json", FIGURES, {})
    assert not (tmp_path / "figures.json").exists()
    write_figures(tmp_path / "figures.json", FIGURES, {}, overwrite=True)
    assert (tmp_path / "figures.csv").read_text().startswith("figure,value,low,high")


def test_outputs_are_checked_before_any_work(tmp_path):
    check_outputs(figures=tmp_path / "a.json", picture=tmp_path / "a.png", others=(None, tmp_path / "b"))
    (tmp_path / "a.csv").touch()
    with pytest.raises(InputError, match=r"a\.csv exists"):
        check_outputs(figures=tmp_path / "a.json")
    check_outputs(figures=tmp_path / "a.json", overwrite=True)
    with pytest.raises(OptionsError, match=r"a\.tif: pictures"):
        check_outputs(picture=tmp_path / "a.tif")


def test_an_output_that_is_an_input_is_refused_before_any_work(tmp_path):
    labels = tmp_path / "labels.json"
    labels.touch()
    with pytest.raises(InputError, match=r"labels\.json is read"):
        check_outputs(figures=labels, inputs=(None, labels), overwrite=True)


def test_outputs_of_one_name_or_without_a_folder_are_refused_before_any_work(tmp_path):
    for options in ({}, {"overwrite": True}):
        with pytest.raises(OptionsError, match=r"a\.csv would be written twice"):
            check_outputs(figures=tmp_path / "a.json", others=(tmp_path / "a.csv",), **options)
    with pytest.raises(InputError, match=r"no folder .*nowhere; create it"):
        check_outputs(others=(tmp_path / "nowhere" / "a.json",))
