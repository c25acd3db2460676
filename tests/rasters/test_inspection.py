from __future__ import annotations

import os

import numpy as np
import pytest
import rasterio
from affine import Affine

from rtsmap import sandbox
from rtsmap.errors import GridMismatchError, InputError
from rtsmap.rasters import inspection, sources
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.first_look import look
from rtsmap.rasters.inspection import Problems, check_inputs
from rtsmap.rasters.opening import REMOTE_PAUSES_S
from tests.rasters.files import write

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))
RNG = np.random.default_rng(7)


def scene(path, size=64, **profile):
    pixels = RNG.integers(1, 255, (3, size, size)).astype(np.uint8)
    return write(path, pixels, 4.0, photometric="RGB", **profile)


def dem(path, low=100.0, high=200.0, dtype="float32", size=40, **profile):
    return write(path, np.linspace(low, high, size * size).reshape(size, size).astype(dtype), 8.0, **profile)


def check(scene_path, dem_path=None):
    """(problems, notes) of inputs."""
    problems = Problems()
    notes = check_inputs(scene_path, dem_path, SPEC, problems=problems)
    return " | ".join(str(exc) for exc in problems.found), " | ".join(notes)


def test_good_inputs_raise_no_doubt(tmp_path):
    assert check(scene(tmp_path / "s.tif"), dem(tmp_path / "d.tif")) == ("", "")


@pytest.mark.parametrize("name", ["a b.tif", 'd\'été "x".tif', "Ямал_融.tif", "100%.tif", "a;b&c,d.tif"])
def test_any_name_will_do(tmp_path, name):
    folder = tmp_path / "scène 1"
    folder.mkdir()
    assert check(scene(folder / name), dem(folder / f"dem {name}")) == ("", "")


@pytest.mark.parametrize(
    ("mark", "scale", "refused"),
    [(-9999, 0.01, True), (-32768, 0.01, True), (-9999, 0.1, True), (-32767, 0.1, False), (-5, 0.01, False)],
)
def test_marks_of_no_data_that_would_be_ground_once_scaled_are_refused(tmp_path, mark, scale, refused):
    path = dem(tmp_path / "d.tif", 100, 15000, dtype="int16")
    with rasterio.open(path, "r+") as dst:
        heights = dst.read()
        heights[:, :9] = mark
        dst.write(heights)
        dst.scales = (scale,)
    problems, _ = check(scene(tmp_path / "s.tif"), path)
    assert (f"-a_nodata {mark} FILE" in problems) == bool(problems) == refused
    with rasterio.open(path, "r+") as dst:
        dst.nodata = mark
    assert check(scene(tmp_path / "s.tif"), path)[0] == ""


@pytest.mark.parametrize(
    ("name", "says"), [(os.fsdecode(b"sc\xe8ne.tif"), "its name is not UTF-8"), ("a" * 300, "no such file")]
)
def test_names_that_no_file_can_have_are_refused(name, says):
    assert inspection.inspect_scene(name).problems
    with pytest.raises(InputError, match=says):
        sources.probe(name)


def test_all_problems_of_all_inputs_come_together(tmp_path):
    one = write(tmp_path / "s.tif", np.ones((2, 9, 9), np.uint8), 4.0, crs=None)
    two = dem(tmp_path / "d.tif", crs=None)
    problems = Problems()
    with problems.collected():
        raise InputError("labels.shp: no polygon")
    check_inputs(one, [two, tmp_path / "absent.tif"], SPEC, problems=problems)
    with pytest.raises(InputError) as caught:
        problems.raise_any()
    text = str(caught.value)
    assert text.startswith("4 things stand in the way:")
    for words in (
        "labels.shp",
        "s.tif: has no CRS",
        "d.tif: has no CRS",
        "absent.tif: there is no such file",
    ):
        assert words in text


def test_one_problem_stays_the_error_that_it_is(tmp_path):
    far = dem(tmp_path / "d.tif", corner=(900_000.0, 7_000_000.0))
    problems = Problems()
    check_inputs(scene(tmp_path / "s.tif"), far, SPEC, problems=problems)
    with pytest.raises(GridMismatchError, match="does not overlap the scene"):
        problems.raise_any()
    patient = Problems()
    check_inputs(tmp_path / "s.tif", far, SPEC, problems=patient, dem_may_miss=True)
    assert not patient.found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"not a picture", "cannot open it as a raster"),
    ],
)
def test_what_is_no_raster_is_named(tmp_path, content, words):
    (tmp_path / "s.tif").write_bytes(content)
    assert words in check(tmp_path / "s.tif")[0]
    assert words in check(scene(tmp_path / "good.tif"), tmp_path / "s.tif")[0]


def test_a_truncated_file_is_refused_with_the_share_that_is_missing(tmp_path):
    path = scene(tmp_path / "s.tif", 512, tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated: 52% of its pixels lie beyond its end" in check(path)[0]


def test_a_damaged_block_is_a_doubt_and_all_damaged_a_problem(tmp_path):
    path = scene(tmp_path / "s.tif", 512, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as src:
        places = [int(src.get_tag_item(f"BLOCK_OFFSET_{c}_{r}", "TIFF", 1)) for r in (0, 1) for c in (0, 1)]
    data[places[0] : places[0] + 64] = bytes(64)
    path.write_bytes(data)
    problems, notes = check(path)
    assert not problems
    assert "a part cannot be read" in notes
    for place in places:
        data[place : place + 64] = bytes(64)
    path.write_bytes(data)
    assert "no pixel of it can be read" in check(path)[0]


def test_a_block_that_would_fill_memory_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "s.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 16384, "width": 16384, "dtype": "uint8"}
    grid = {"crs": "EPSG:32608", "transform": Affine(4, 0, 5e5, 0, -4, 7.7e6)}
    with rasterio.open(
        path,
        "w",
        **profile,
        **grid,
        tiled=True,
        blockxsize=16384,
        blockysize=16384,
        SPARSE_OK=True,
        interleave="pixel",
        compress="deflate",
    ):
        pass
    assert "decode to 768 MiB" in check(path)[0]
    with pytest.raises(InputError, match="decode to 768 MiB"):
        sources.probe(path)
    (tmp_path / "s.vrt").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32608</SRS>'
        "<GeoTransform>500000, 4, 0, 7700000, 0, -4</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">s.tif'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert "s.tif decode to 768 MiB" in check(tmp_path / "s.vrt")[0]


def test_what_kills_or_stalls_the_reader_is_a_problem_of_its_file(tmp_path, monkeypatch):
    path = scene(tmp_path / "s.tif")

    def crash(*_, **__):
        raise sandbox.CrashedError("the library that reads it crashes (SIGSEGV)")

    monkeypatch.setattr(sandbox, "call", crash)
    monkeypatch.setattr(sources, "probe", lambda *_: pytest.fail("it must not be opened again"))
    assert "s.tif: the library that reads it crashes (SIGSEGV)" in check(path)[0]


@pytest.mark.parametrize(
    ("pixels", "profile", "problem", "note"),
    [
        (np.zeros((3, 40, 40), np.uint8), {}, "no pixel has data", ""),
        (np.full((3, 40, 40), np.nan, np.float32), {}, "no pixel has data", ""),
        (np.full((3, 40, 40), 7, np.uint8), {"nodata": 7}, "no pixel has data", ""),
        (np.full((3, 40, 40), 7, np.uint8), {}, "", "has the value 7 wherever"),
        (np.float32([[[-3.4e38, 5.0]]] * 3), {}, "-3.4e+38, which no imagery has", ""),
        (np.int16([[[-9999, 5, 6]]] * 3), {}, "declare it: gdal_edit.py -a_nodata -9999 FILE", ""),
        (np.int16([[[-9999, 5, 6]]] * 3), {"nodata": -9999}, "", ""),
    ],
)
def test_scenes_without_sense(tmp_path, pixels, profile, problem, note):
    path = write(tmp_path / "s.tif", pixels, 4.0, photometric="RGB", **profile)
    problems, notes = check(path)
    assert problem in problems
    assert bool(problem) == bool(problems)
    assert note in notes
    assert bool(note) == bool(notes)


def whitened(path, corners, *, size=64, white_px=20, dtype=np.uint8, bands=3, **profile):
    top = np.iinfo(dtype).max
    pixels = RNG.integers(1, top, (3, size, size)).astype(dtype)
    near, far = slice(None, white_px), slice(-white_px, None)
    for row, col in corners:
        pixels[:bands, (near, far)[row], (near, far)[col]] = top
    return write(path, pixels, 4.0, photometric="RGB", **profile)


@pytest.mark.parametrize("size", [64, 200, 1500])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_white_border_that_is_not_declared_is_told(tmp_path, size, dtype):
    path = whitened(tmp_path / "s.tif", [(0, 0), (1, 1), (0, 1)], size=size, dtype=dtype)
    problems, notes = check(path)
    top = np.iinfo(dtype).max
    assert not problems
    assert f"is {top} in every band at 3 of its corners" in notes
    assert f"gdal_edit.py -a_nodata {top} FILE" in notes


@pytest.mark.parametrize(
    "how",
    [
        {"corners": [(0, 0), (1, 1)], "nodata": 255},
        {"corners": [(0, 0)]},
        {"corners": [(0, 0), (1, 1)], "white_px": 8},
        {"corners": [(0, 0), (1, 1)], "bands": 2},
    ],
    ids=["declared", "one corner", "specks", "a bright band"],
)
def test_bright_ground_is_no_border(tmp_path, how):
    assert check(whitened(tmp_path / "s.tif", **how)) == ("", "")


def test_near_infrared_that_is_marked_as_alpha_is_refused_and_alpha_is_not(tmp_path):
    pixels = RNG.integers(1, 255, (4, 64, 64)).astype(np.uint8)
    # this is how GDAL marks four bands of 8 bit when nobody tells it otherwise
    problems, _ = check(write(tmp_path / "s.tif", pixels, 4.0))
    assert "its band 4 is marked as alpha" in problems
    assert "gdal_edit.py -colorinterp_4 undefined FILE" in problems
    pixels[3] = 255
    pixels[3, :20], pixels[3, 20:22] = 0, 90
    assert check(write(tmp_path / "s.tif", pixels, 4.0)) == ("", "")


@pytest.mark.parametrize("how", [{"nodata": 0}, {"mask": np.ones((64, 64), bool)}])
def test_colours_that_gdal_gives_to_any_four_bands_of_8_bit_name_none(tmp_path, how):
    pixels = RNG.integers(1, 255, (4, 64, 64)).astype(np.uint8)
    path = write(tmp_path / "s.tif", pixels, 4.0, **how)
    problems, _ = check(path)
    assert "--bands red=3,green=2,blue=1 where the order is blue, green, red, near infrared" in problems
    assert "GDAL marks any four of 8 bit as red, green, blue, alpha" in problems
    given = {"red": 3, "green": 2, "blue": 1}
    assert sources.optical_bands(sources.probe(path), given, given) == given
    with rasterio.open(path, "r+") as dst:
        dst.descriptions = ("blue", "green", "red", "nir")
    assert check(path) == ("", "")


def test_alpha_that_is_nowhere_opaque_leaves_no_data(tmp_path):
    pixels = RNG.integers(1, 255, (4, 64, 64)).astype(np.uint16)
    pixels[3] = 255
    path = write(tmp_path / "s.tif", pixels, 4.0, photometric="RGB", alpha="YES")
    assert "no pixel has data" in check(path)[0]


@pytest.mark.parametrize(
    ("values", "extra", "problem", "note"),
    [
        ((1e5, 2e5), {}, "it is not elevation", ""),
        ((-32768, -32768), {"dtype": "int16"}, "nodata value is not declared", ""),
        ((-9999, -9999), {"nodata": -9999}, "no pixel has data", ""),
        ((0, 250), {"dtype": "uint8"}, "", "8-bit values"),
        ((0, 1), {}, "", "all its sampled values lie within 0 and 1"),
        ((3000, 20000), {}, "", "if they are feet, say so"),
        ((-9999, 800), {}, "", "taken as voids"),
        ((-999, 800), {}, "-a_nodata -999 FILE", ""),
        ((-999, 800), {"nodata": -999}, "", ""),
        ((-998, 800), {}, "", ""),
        ((5, 5), {}, "", "has the value 5 wherever"),
        ((100, 200), {"crs": "EPSG:2276", "corner": (-1e7, 4e7)}, "", "its CRS is in feet"),
    ],
)
def test_elevation_that_is_none_or_in_doubt(tmp_path, values, extra, problem, note):
    problems = Problems()
    path = dem(tmp_path / "d.tif", *values, **extra)
    notes = check_inputs(scene(tmp_path / "s.tif"), path, SPEC, problems=problems, dem_may_miss=True)
    found = " ".join(map(str, problems.found))
    assert problem in found
    assert bool(problem) == bool(found)
    assert any(note in sentence for sentence in notes) if note else not notes


def test_bands_that_say_what_they_are_are_believed(tmp_path):
    path = dem(tmp_path / "d.tif")
    with rasterio.open(path, "r+") as dst:
        dst.set_band_description(1, "gamma0_vv")
    assert "'gamma0_vv', which is not elevation" in check(scene(tmp_path / "s.tif"), path)[0]
    classes = dem(tmp_path / "c.tif", 0, 12, dtype="uint8")
    with rasterio.open(classes, "r+") as dst:
        dst.write_colormap(1, {0: (0, 0, 0), 12: (9, 9, 9)})
    assert "classes with a colour table" in check(tmp_path / "s.tif", classes)[0]


def test_many_tiles_are_only_opened(tmp_path):
    paths = [dem(tmp_path / f"{i}.tif", size=4) for i in range(40)]
    assert check(scene(tmp_path / "s.tif"), paths) == ("", "")


def test_the_look_is_data_and_cheap_on_large_files(tmp_path):
    path = scene(tmp_path / "s.tif", 1024, tiled=True, blockxsize=128, blockysize=128)
    found = look(str(path))
    assert found["sampled"] == 25
    assert not found["whole"]
    assert len(found["bands"]) == 3


def unread(sampled):
    reasons = [] if sampled else ["HTTP error code : 500"]
    return {"problems": [], "bands": [], "whole": False, "sampled": sampled, "unread": reasons}


@pytest.mark.parametrize(("failures", "says"), [(2, ""), (9, "its server does not deliver it")])
def test_a_server_that_fails_at_first_is_asked_again(monkeypatch, failures, says):
    asked, pauses = [], []

    def refuse(path):
        raise InputError(f"{path}: read elsewhere")

    def call(_, path):
        asked.append(path)
        return unread(sampled=0 if len(asked) <= failures else 4)

    monkeypatch.setattr(sandbox, "call", call)
    monkeypatch.setattr(inspection.time, "sleep", pauses.append)
    monkeypatch.setattr(sources, "probe", refuse)
    found = inspection.inspect_scene("https://example.com/scene.tif")
    assert says in " ".join(found.problems)
    assert bool(found.problems) == bool(says)
    assert pauses == list(REMOTE_PAUSES_S[: len(asked) - 1])
    assert len(asked) == min(failures + 1, 1 + len(REMOTE_PAUSES_S))
