from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.rasters import reading, sources
from rtsmap.rasters.fingerprints import fingerprint
from rtsmap.rasters.mosaic import open_elevation
from rtsmap.rasters.tiling import Window
from tests.rasters.files import UTM, geobox, write

HEIGHT, WIDTH = 90, 120
TURNED = Affine.translation(500_000, 7_700_000) * Affine.rotation(30) * Affine.scale(4, -4)
HILL = (50 + 40 * np.sin(np.arange(HEIGHT)[:, None] / 9) * np.cos(np.arange(WIDTH) / 11)).astype(np.float32)


def points(affine, *, shift_px=0.0, count=4):
    corners = [(0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH), (HEIGHT / 2, WIDTH / 2)][:count]
    shifts = [shift_px * (-1) ** i for i in range(count)]
    return [
        GroundControlPoint(row=r, col=c, x=(affine * (c + s, r))[0], y=(affine * (c + s, r))[1])
        for (r, c), s in zip(corners, shifts, strict=True)
    ]


def write_located_by(path, gcps, crs=UTM, heights=HILL):
    height, width = heights.shape
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": "float32"}
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(heights, 1)
        dst.gcps = (gcps, rasterio.CRS.from_string(crs))
    return path


def height_at(info, x, y):
    patch = reading.read_native(info, [1])
    col, row = (int(v) for v in ~patch.geobox.affine * (x, y))
    return patch.pixels[0, row, col] if patch.valid[row, col] else None


@pytest.mark.parametrize(
    "affine",
    [TURNED, Affine(4, 0, 500_000, 0, 4, 7_700_000), Affine(-4, 0, 500_000, 0, -4, 7_700_000)],
    ids=["rotated", "south up", "mirrored"],
)
def test_a_grid_that_does_not_lie_north_up_is_turned_to_where_its_pixels_are(tmp_path, affine):
    info = sources.probe(write(tmp_path / "dem.tif", HILL, transform=affine))
    assert "turned north up" in info.notes[0]
    assert info.geobox.affine.b == 0
    assert info.geobox.affine.a > 0 > info.geobox.affine.e
    for row, col in ((10, 10), (44, 60), (80, 110), (30, 90)):
        x, y = affine * (col + 0.5, row + 0.5)
        assert height_at(info, x, y) == pytest.approx(HILL[row, col], abs=6)


def test_beyond_the_turned_pixels_nothing_is_data(tmp_path):
    info = sources.probe(write(tmp_path / "dem.tif", HILL, transform=TURNED))
    valid = reading.read_native(info, [1]).valid
    area_px = HEIGHT * WIDTH * 16 / abs(info.geobox.affine.determinant)
    assert valid.sum() == pytest.approx(area_px, rel=0.03)
    assert not valid[0, 0]


def test_a_quarter_turn_keeps_each_pixel_as_it_is(tmp_path):
    rng = np.random.default_rng(1)
    numbers = rng.integers(1, 255, (300, 700)).astype(np.uint8)
    upright = Affine(4, 0, 500_000, 0, -4, 7_700_000)
    turned = upright * Affine.translation(700, 0) * Affine.rotation(90)
    path = write(tmp_path / "turned.tif", np.ascontiguousarray(np.rot90(numbers)), transform=turned)
    info = sources.probe(path)
    assert info.geobox.affine.almost_equals(upright)
    for window in (Window(0, 0, 300, 700), Window(90, 250, 150, 333)):
        found = reading.read_native(info, [1], window).pixels[0]
        assert np.array_equal(found, numbers[window.slices()])


def test_no_pixel_depends_on_the_window_that_it_is_read_with(tmp_path):
    """GDAL widens its kernel by how much longer the window's place in the file is than the window."""
    fine = (50 + 40 * np.sin(np.arange(900)[:, None] / 2) * np.cos(np.arange(1200) / 2)).astype(np.float32)
    bent = [
        GroundControlPoint(row=r, col=c, x=x + 1e-5 * r * r, y=y + 1e-5 * r * c)
        for r in np.linspace(0, 900, 6)
        for c in np.linspace(0, 1200, 6)
        for x, y in [TURNED * (c, r)]
    ]
    turned = write(tmp_path / "turned.tif", fine, transform=TURNED)
    for path in (turned, write_located_by(tmp_path / "bent.tif", bent, heights=fine)):
        info = sources.probe(path)
        whole = reading.read_native(info, [1])
        for window in (Window(301, 433, 451, 633), Window(700, 500, 900, 560)):
            part = reading.read_native(info, [1], window)
            place = window.slices()
            assert np.array_equal(part.valid, whole.valid[place])
            assert np.abs(part.pixels - whole.pixels[(slice(None), *place)]).max() < 1e-3


def test_ground_control_points_that_agree_are_warped_by(tmp_path):
    info = sources.probe(write_located_by(tmp_path / "a b'ü.tif", points(TURNED)))
    assert "4 ground control points" in info.notes[0]
    x, y = TURNED * (60.5, 44.5)
    assert height_at(info, x, y) == pytest.approx(HILL[44, 60], abs=6)
    assert fingerprint(info.path)["shape"] == list(info.geobox.shape)


@pytest.mark.parametrize(
    ("gcps", "words"),
    [
        (points(TURNED, shift_px=9, count=5), "contradict each other"),
        (points(TURNED, count=3), "3 ground control points only"),
    ],
)
def test_ground_control_points_in_doubt_are_refused(tmp_path, gcps, words):
    path = write_located_by(tmp_path / "dem.tif", gcps)
    with pytest.raises(InputError, match=words):
        sources.probe(path)


def test_turned_tiles_are_not_joined_with_others(tmp_path):
    turned = write(tmp_path / "a.tif", HILL, transform=TURNED)
    other = write(tmp_path / "b.tif", HILL, 4.0)
    near = geobox((200, 200))
    assert open_elevation(turned, near).info.dataset != str(turned)
    with pytest.raises(GridMismatchError, match="does not lie north up"):
        open_elevation([turned, other], near)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
def test_mirrored_pixels_are_the_same_pixels(tmp_path, dtype):
    numbers = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)
    south_up = write(tmp_path / "s.tif", numbers, transform=Affine(4, 0, 500_000, 0, 4, 7_700_000))
    patch = reading.read_native(sources.probe(south_up), [1])
    assert patch.valid.all()
    assert np.array_equal(patch.pixels[0], numbers[::-1])
