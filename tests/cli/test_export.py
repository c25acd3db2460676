"""`rtsmap export` at the command line."""

from __future__ import annotations

import pyogrio
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.vectors.geopackage import write_map
from tests.vectors.samples import POLAR, RECORD, coverage, footprints


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_map_is_exported_and_the_path_is_printed(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(), POLAR, coverage(), RECORD)
    out = tmp_path / "slumps.shp"
    done = export(tmp_path / "map.gpkg", out, "--min-score", "0.5")
    assert done.exit_code == 0
    assert done.stdout.strip() == str(out)
    assert "area_m2" in pyogrio.read_info(out)["fields"]
    again = export(tmp_path / "map.gpkg", out)
    assert again.exit_code == 1
    assert pyogrio.read_dataframe(out)["score"].min() >= 0.5
    assert export(tmp_path / "map.gpkg", out, "--overwrite").exit_code == 0
    assert pyogrio.read_dataframe(out)["score"].min() < 0.5


def test_a_file_that_is_no_map_is_an_error_of_the_user(tmp_path):
    done = export(tmp_path / "no.gpkg", tmp_path / "out.shp")
    assert done.exit_code == 1
    assert "no such file" in " ".join(done.stderr.split())


def test_notes_say_what_the_format_could_not_hold(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(), POLAR, coverage(), RECORD)
    done = export(tmp_path / "map.gpkg", tmp_path / "a.csv", "--crs", "EPSG:3413", "--min-area", "5000")
    assert done.exit_code == 0
    assert "outlines are WKT in EPSG:3413" in " ".join(done.stderr.split())
    done = export(tmp_path / "map.gpkg", tmp_path / "a.kml", "--crs", "EPSG:3413")
    assert done.exit_code == 1
    assert "KML is always in longitude and latitude" in " ".join(done.stderr.split())


def test_a_profile_takes_fields(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(), POLAR, coverage(), RECORD)
    fields = (
        "RegionName=Banks = Island",
        "CreatorLab=me",
        "BaseMapDate=2024-08-01",
        "BaseMapSource=WorldView-2",
    )
    told = [part for field in (*fields, "BaseMapResolution=4") for part in ("--field", field)]
    done = export(tmp_path / "map.gpkg", tmp_path / "a.geojson", "--profile", "arts", *told)
    assert done.exit_code == 0, done.stderr
    assert set(pyogrio.read_dataframe(tmp_path / "a.geojson")["RegionName"]) == {"Banks = Island"}
    for arguments, sentence in (
        (["--field", "RegionName"], "wanted NAME=VALUE"),
        (["--profile", "pdg", "--crs", "EPSG:3413"], "leave --crs out"),
        (["--field", "RegionName=x"], "belong to a --profile"),
    ):
        done = export(tmp_path / "map.gpkg", tmp_path / "b.geojson", *arguments)
        assert done.exit_code == 1
        assert sentence in " ".join(done.stderr.split())
