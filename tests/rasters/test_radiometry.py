from __future__ import annotations

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling

from rtsmap.errors import BandError
from rtsmap.rasters import sources
from rtsmap.rasters.bands import OPTICAL_RGB, Band, InputSpec, Modality, check_bands, parse_bands
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.radiometry import measure
from rtsmap.rasters.tiling import Window
from rtsmap.simulate.scenes import write_scene
from tests.rasters.files import write

RNG = np.random.default_rng(11)
SPEC = InputSpec(4.0, (OPTICAL_RGB,))
SIDE = 300
BGRN = {"red": 3, "green": 2, "blue": 1}
WORLDVIEW = {"red": 5, "green": 3, "blue": 2}
CHIPS = {"red": (39, 148), "green": (52, 142), "blue": (36, 127)}
"""Percentiles 1 and 99 of the published slump chips (medians over 415 of them)."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A simulated scene, 8 bit, and its radiances: without the steps of 8 bit, with fill in a corner."""
    made = write_scene("demo", 1, tmp_path_factory.mktemp("ground"), size_px=SIDE)
    with rasterio.open(made.scene) as src:
        pixels = src.read()
    fill = np.zeros(pixels.shape[1:], bool)
    fill[:60, :90] = True
    pixels[:, fill] = 0
    smooth = np.clip(pixels + RNG.uniform(-0.5, 0.5, pixels.shape), 1, 255)
    return pixels, dict(zip(("red", "green", "blue"), smooth, strict=True)), fill


def deliver(path, ground, bands, *, count, gains, hazes, top):
    """A delivery in other bands, gains and depth; bands that nobody asked for hold noise."""
    _, radiance, fill = ground
    planes = RNG.integers(1, top, (count, *fill.shape)).astype(np.uint16)
    for name, gain, haze in zip(bands, gains, hazes, strict=True):
        planes[bands[name] - 1] = np.clip(np.rint(gain * radiance[name] + haze), 1, top)
    planes[:, fill] = 0
    return write(path, planes, 4.0, photometric="MINISBLACK")


def read(path, bands=None, window=None):
    grid = sources.run_grid(sources.probe(path), 4.0).geobox
    reader = ChipReader(path, None, SPEC, grid, bands)
    return reader.read_block(window or Window(0, 0, *grid.shape))["optical"], reader


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory, ground):
    path = tmp_path_factory.mktemp("sixteen") / "bgrn.tif"
    return deliver(path, ground, BGRN, count=4, gains=(91.0, 63.0, 55.5), hazes=(900, 1700, 3100), top=65535)


@pytest.fixture(scope="module")
def eleven(tmp_path_factory, ground):
    path = tmp_path_factory.mktemp("eleven") / "wv.tif"
    return deliver(path, ground, WORLDVIEW, count=8, gains=(7.1, 6.2, 6.9), hazes=(30, 90, 150), top=2047)


@pytest.fixture(scope="module")
def picture(sixteen):
    """The whole of the 16-bit delivery, and its reader."""
    return read(sixteen, BGRN)


def test_deliveries_of_one_ground_give_one_picture(ground, picture, eleven):
    four, reader = picture
    eight, _ = read(eleven, WORLDVIEW)
    np.testing.assert_array_equal(four.valid, ~ground[2])
    np.testing.assert_array_equal(eight.valid, ~ground[2])
    assert np.abs(four.pixels - eight.pixels).max() < 0.5
    assert not four.pixels[:, ground[2]].any()
    assert reader.bands == BGRN
    assert any("percentiles 1 and 99" in note for note in reader.notes)


def test_an_8_bit_delivery_toned_as_the_published_chips_is_that_picture_too(tmp_path, ground, picture):
    pixels, radiance, fill = ground
    toned = np.zeros_like(pixels)
    for plane, (name, targets) in zip(toned, CHIPS.items(), strict=True):
        low, high = np.percentile(radiance[name][~fill], (1, 99))
        values = np.interp(radiance[name], (low, high), targets)
        beyond = targets[0] + (radiance[name] - low) * (targets[1] - targets[0]) / (high - low)
        outside = (radiance[name] < low) | (radiance[name] > high)
        plane[:] = np.clip(np.rint(np.where(outside, beyond, values)), 1, 255)
    toned[:, fill] = 0
    eight, reader = read(write(tmp_path / "toned.tif", toned, 4.0, photometric="RGB"))
    assert reader.radiometry is None
    four, _ = picture
    assert np.abs(four.pixels - eight.pixels)[:, ~fill].mean() < 3
    assert np.abs(four.pixels - eight.pixels).max() < 10


def test_a_simulated_8_bit_scene_differs_by_its_own_toning_only(tmp_path, ground, picture):
    pixels, _, fill = ground
    eight, _ = read(write(tmp_path / "rgb.tif", pixels, 4.0, photometric="RGB"))
    np.testing.assert_array_equal(eight.pixels, pixels)
    four, _ = picture
    for mine, theirs in zip(four.pixels, eight.pixels, strict=True):
        line = np.polyfit(theirs[~fill], mine[~fill], 1)
        assert 0.6 < line[0] < 1.7
        assert np.abs(mine - np.polyval(line, theirs))[~fill].mean() < 1


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gain=st.floats(1e-4, 200),
    haze=st.floats(0, 50),
    dtype=st.sampled_from(["uint16", "int32", "float32", "float64"]),
)
def test_gain_and_offset_of_a_delivery_cancel(tmp_path_factory, ground, picture, *, gain, haze, dtype):
    whole = dtype in {"uint16", "int32"}
    gain = max(gain, 20.0) if whole else gain
    _, radiance, fill = ground
    planes = np.stack([np.where(fill, 0, gain * (plane + haze)) for plane in radiance.values()])
    planes = planes.round().astype(dtype) if whole else planes.astype(dtype)
    path = tmp_path_factory.mktemp("gain") / "x.tif"
    mask = (~fill * 255).astype(np.uint8)
    layer, _ = read(write(path, planes, 4.0, photometric="MINISBLACK", mask=mask))
    wanted, _ = picture
    np.testing.assert_array_equal(layer.valid, wanted.valid)
    assert np.abs(layer.pixels - wanted.pixels).max() < 0.6


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_scale_is_one_for_the_scene_whatever_the_block(picture, data):
    whole, reader = picture
    rows = sorted(data.draw(st.sets(st.integers(0, SIDE), min_size=2, max_size=2)))
    cols = sorted(data.draw(st.sets(st.integers(0, SIDE), min_size=2, max_size=2)))
    window = Window(rows[0], cols[0], rows[1], cols[1])
    down, right = window.slices()
    np.testing.assert_array_equal(reader.read_block(window)["optical"].pixels, whole.pixels[:, down, right])


def test_the_scale_comes_from_a_sample_that_has_seen_the_whole_scene():
    """Of a large grid few pixels are read, and their percentiles are near those of all."""
    shape = (2000, 3000)
    rows, cols = np.indices(shape)
    field = 400 + 150 * np.sin(rows / 310) * np.cos(cols / 270) + RNG.normal(0, 30, shape)
    field = field.astype(np.float32)
    read_px = []

    def reading(window):
        read_px.append(window.height * window.width)
        part = field[window.slices()][None]
        return part, part[0] > 0

    found = measure([OPTICAL_RGB.bands[0]], shape, reading).stretches[0]
    assert sum(read_px) < 0.05 * field.size
    low, high = np.percentile(field, (1, 99))
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))


@pytest.mark.parametrize("side", [40, 300])
def test_rare_data_are_found(side):
    field = np.zeros((3000, 3000), np.float32)
    field[1700 : 1700 + side, 1100 : 1100 + side] = RNG.integers(1, 1000, (side, side))

    def reading(window):
        part = field[window.slices()][None]
        return part, part[0] > 0

    found = measure([OPTICAL_RGB.bands[0]], field.shape, reading).stretches[0]
    assert (found.low, found.high) == pytest.approx((11, 989), abs=15)


def test_overviews_hardly_move_the_scale(tmp_path):
    rows, cols = np.indices((1600, 1600))
    tone = 500 + 200 * np.sin(rows / 70) * np.cos(cols / 50) + RNG.normal(0, 40, rows.shape)
    planes = np.stack([tone, 0.8 * tone, 0.6 * tone]).astype(np.uint16)
    path = write(tmp_path / "x.tif", planes, 1.0, photometric="RGB", tiled=True)
    without = read(path)[1].radiometry
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    for one, other in zip(without.stretches, read(path)[1].radiometry.stretches, strict=True):
        assert one.low == pytest.approx(other.low, abs=2)
        assert one.high == pytest.approx(other.high, abs=2)


def test_scenes_without_a_scale_are_refused(tmp_path):
    flat = write(tmp_path / "flat.tif", np.full((3, 50, 50), 7, np.uint16), 4.0, photometric="RGB")
    with pytest.raises(BandError, match="'red' has the value 7 nearly everywhere"):
        read(flat)
    empty = write(tmp_path / "empty.tif", np.zeros((3, 50, 50), np.uint16), 4.0, photometric="RGB")
    with pytest.raises(BandError, match=r"empty\.tif: no pixel has data"):
        read(empty)


def test_bands_that_are_no_digital_numbers_keep_their_values(tmp_path, ground):
    """An index in a float file has a scale of its own."""
    planes = np.stack([ground[1]["red"] * 40, RNG.uniform(-1, 1, ground[2].shape)]).astype(np.float32)
    path = write(tmp_path / "x.tif", planes, 4.0)
    spec = InputSpec(4.0, (Modality("spectral", (Band("nir", 90, 30, 0, 255), Band("ndvi", 0, 1, -1, 1))),))
    grid = sources.run_grid(sources.probe(path), 4.0).geobox
    reader = ChipReader(path, None, spec, grid, {"nir": 1, "ndvi": 2})
    layer = reader.read_block(Window(0, 0, *grid.shape))["spectral"]
    np.testing.assert_array_equal(layer.pixels[1], planes[1])
    assert [stretch.band for stretch in reader.radiometry.stretches] == ["nir"]
    assert np.percentile(layer.pixels[0], 50) == pytest.approx(90, abs=25)


def test_band_numbers_are_read_and_checked():
    assert parse_bands(" Red=5, green = 3,BLUE=2 ") == WORLDVIEW
    for text, words in {
        "red": "cannot read 'red'",
        "red=5,": "cannot read ''",
        "red=-1": "cannot read",
        "red=0": "from 1",
        "red=1,red=2": "named twice",
        "rot=1": "no band called 'rot'",
        "slope=1": "no band called 'slope'",
        "red=1,green=1,blue=2": "red and green were all given as 1",
    }.items():
        with pytest.raises(BandError, match=words):
            parse_bands(text)
    with pytest.raises(BandError, match="whole number"):
        check_bands({"red": "5"})
