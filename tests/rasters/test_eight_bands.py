from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rtsmap.errors import BandError, InputError
from rtsmap.rasters.bands import NIR, OPTICAL_RGB, SPECTRAL, InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.eight_bands import EIGHT_BANDS, infrared_scale, read_eight_bands
from rtsmap.rasters.radiometry import SD_ABOVE, SD_BELOW
from rtsmap.rasters.tiling import Window
from rtsmap.rasters.writing import write_geotiff


def eight(shape=(30, 40), seed=0):
    """(H, W, 8) float32 with plausible values of each band."""
    rng = np.random.default_rng(seed)
    bands = {
        "red": rng.uniform(20, 200, shape),
        "green": rng.uniform(20, 200, shape),
        "blue": rng.uniform(20, 200, shape),
        "ndvi": rng.uniform(0.2, 0.7, shape),
        "relative_elevation": rng.normal(0, 2, shape),
        "shaded_relief": rng.uniform(140, 190, shape),
        "nir": rng.normal(2140, 655, shape).clip(0),
        "ndwi": rng.uniform(-0.6, -0.2, shape),
    }
    return np.stack([bands[name] for name in EIGHT_BANDS], axis=-1).astype(np.float32)


def saved(folder, array, name="a.npz", key="image"):
    np.savez(folder / name, **{key: array})
    return folder / name


def test_bands_are_found_by_name_and_missing_pixels_are_no_data(tmp_path):
    array = eight()
    array[3, 4, 4], array[5, 6, 4], array[7, 8, 6] = np.nan, -9999, np.nan
    chip = read_eight_bands(saved(tmp_path, array))
    heights, measured = chip.bands(["relative_elevation"])
    assert np.argwhere(~measured).tolist() == [[3, 4], [5, 6]]
    np.testing.assert_array_equal(heights[0][measured], array[..., 4][measured])
    assert not heights[0][~measured].any()
    pixels, known = chip.bands(["ndwi", "nir"])
    np.testing.assert_array_equal(pixels[0], array[..., 7])
    assert np.argwhere(~known).tolist() == [[7, 8]]


@pytest.mark.parametrize("shape", [(30, 40), (8, 30, 40), (30, 40, 7), (30, 40, 8, 1)])
def test_other_shapes_are_refused(tmp_path, shape):
    with pytest.raises(InputError, match=r"wanted numbers of \(height, width, 8\)"):
        read_eight_bands(saved(tmp_path, np.zeros(shape, np.float32)))


def test_what_is_no_such_archive_is_refused(tmp_path):
    with pytest.raises(InputError, match="no array 'image', only picture"):
        read_eight_bands(saved(tmp_path, eight(), key="picture"))
    (tmp_path / "b.npz").write_bytes(b"no archive")
    np.save(tmp_path / "c.npy", eight())
    for name in ("b.npz", "c.npy", "absent.npz"):
        with pytest.raises(InputError, match=name):
            read_eight_bands(tmp_path / name)
    with pytest.raises(InputError, match="wanted numbers"):
        read_eight_bands(saved(tmp_path, np.full((3, 4, 8), "text")))


class Trap:
    """Unpickling it would show."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_a_pickle_in_the_archive_is_never_opened(tmp_path):
    array = np.empty((2, 2, 8), object)
    array[:] = Trap()
    with pytest.raises(InputError, match="numpy archive of numbers"):
        read_eight_bands(saved(tmp_path, array))
    assert not Trap.sprung


def header_only(path, shape, dtype="<f4", extra=b""):
    """An archive whose array says it has this shape, with hardly a byte behind it."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", member.getvalue() + extra)
    return path


@pytest.mark.parametrize("shape", [(1 << 40, 1 << 20, 8), (60_000, 60_000, 8), (-5, 20, 8), (0, 20, 8)])
def test_a_header_that_promises_too_much_gets_no_memory(tmp_path, shape):
    path = header_only(tmp_path / "big.npz", shape)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"big\.npz"):
        read_eight_bands(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_what_is_cut_off_or_hides_a_second_array_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cut\.npz: cannot be read"):
        read_eight_bands(header_only(tmp_path / "cut.npz", (30, 40, 8), extra=b"1234"))
    # numpy itself would open the member without a suffix
    path = saved(tmp_path, eight(), "two.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("image", b"something else")
    assert read_eight_bands(path).pixels.shape == (8, 30, 40)
    whole = path.read_bytes()
    for at in range(0, len(whole), 997):
        (tmp_path / "damaged.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            read_eight_bands(tmp_path / "damaged.npz")
        except (InputError, BandError):
            continue


@pytest.mark.parametrize(
    ("band", "value"), [("ndvi", 6000), ("red", 1800), ("relative_elevation", 2100), ("nir", -5)]
)
def test_values_that_a_band_cannot_have_are_refused_by_name(tmp_path, band, value):
    array = eight()
    array[0, 0, EIGHT_BANDS.index(band)] = value
    with pytest.raises(BandError, match=f"{band} is .*{value}.*order of the bands"):
        read_eight_bands(saved(tmp_path, array))


def test_colours_of_0_to_1_are_refused_and_not_taken_for_black(tmp_path):
    array = eight()
    array[..., :3] /= 255
    with pytest.raises(BandError, match=r"red, green and blue are fractions up to 0\.\d+, wanted 0 to 255"):
        read_eight_bands(saved(tmp_path, array))
    array[..., :3] = 0
    assert not read_eight_bands(saved(tmp_path, array)).pixels[:3].any()


def test_infrared_of_any_unit_comes_onto_the_same_scale(tmp_path):
    array, fifth, reflectance = (eight((200, 200)) for _ in range(3))
    fifth[..., 6] /= 5
    reflectance[..., 6] /= 10_000
    given = (array, fifth, reflectance)
    many, few, fractions = (infrared_scale([read_eight_bands(saved(tmp_path, a))]) for a in given)
    np.testing.assert_allclose(few.apply(fifth[..., 6]), many.apply(array[..., 6]), atol=0.01)
    np.testing.assert_allclose(fractions.apply(reflectance[..., 6]), many.apply(array[..., 6]), atol=0.01)
    low, high = np.percentile(many.apply(array[..., 6]), (1, 99))
    assert low == pytest.approx(NIR.mean - SD_BELOW * NIR.sd, abs=3)
    assert high == pytest.approx(NIR.mean + SD_ABOVE * NIR.sd, abs=3)
    array[..., 6] = array[..., 6].clip(0, 2550) / 10
    assert infrared_scale([read_eight_bands(saved(tmp_path, array))]) is None
    assert infrared_scale([]) is None


def test_a_scene_with_infrared_shows_what_a_chip_of_the_same_ground_shows(tmp_path):
    """However the infrared comes: among the scene's bands in 16 bit, or as an 8-bit file of its own."""
    array = eight((200, 240))
    chip = read_eight_bands(saved(tmp_path, array))
    scale = infrared_scale([chip])
    wanted = scale.apply(chip.bands(["nir"])[0])[0]
    grid = GeoBox((200, 240), Affine(4, 0, 500_000, 0, -4, 7_700_000), "EPSG:32608")
    spec = InputSpec(4.0, (OPTICAL_RGB, SPECTRAL))
    everything = Window(0, 0, 200, 240)

    colours, nir = np.moveaxis(array[..., :3], -1, 0), array[..., 6]
    deep = np.rint(np.concatenate([colours * 7 + 100, nir[None]])).astype(np.uint16)
    names = ("red", "green", "blue", "nir")
    write_geotiff(tmp_path / "deep.tif", deep, grid, band_names=names)
    of_scene = ChipReader(tmp_path / "deep.tif", None, spec, grid).read_block(everything)["spectral"]
    np.testing.assert_allclose(of_scene.pixels[0], wanted, atol=1.0)

    plain = np.rint(colours).astype(np.uint8)
    write_geotiff(tmp_path / "plain.tif", plain, grid, band_names=names[:3])
    write_geotiff(tmp_path / "nir.tif", np.rint(wanted).astype(np.uint8), grid)
    write_geotiff(tmp_path / "ndvi.tif", array[..., 3], grid)
    write_geotiff(tmp_path / "ndwi.tif", array[..., 7], grid)
    files = {name: tmp_path / f"{name}.tif" for name in ("nir", "ndvi", "ndwi")}
    reader = ChipReader(tmp_path / "plain.tif", None, spec, grid, band_files=files)
    of_files = reader.read_block(everything)["spectral"]
    np.testing.assert_allclose(of_files.pixels[0], wanted, atol=0.51)
    for number, name in ((1, "ndvi"), (2, "ndwi")):
        np.testing.assert_array_equal(of_files.pixels[number], chip.bands([name])[0][0])
