from __future__ import annotations

from PIL import Image
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.vectors.geopackage import read_map, read_run_record
from rtsmap.vectors.labels import read_polygons


def test_the_demo_goes_the_whole_way_with_the_shipped_model(tmp_path):
    out = tmp_path / "a demo"
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--size-px", "200", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert f"rtsmap report '{out / 'slumps.gpkg'}'" in result.stderr
    coverage = read_map(out / "slumps.gpkg", "coverage")
    assert coverage["area_m2"].sum() > 0.9 * (200 * 4) ** 2
    assert "rts-starter" in str(read_run_record(out / "slumps.gpkg"))
    if len(read_map(out / "slumps.gpkg")):
        assert len(read_polygons(out / "slumps.shp")) == len(read_map(out / "slumps.gpkg"))
    with Image.open(out / "preview.png") as picture:
        assert picture.width > 1000
    again = CliRunner().invoke(app, ["demo", "--out", str(out), "--size-px", "200", "--seed", "3"])
    assert again.exit_code == 1
