from __future__ import annotations

import shutil
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pytest

from rtsmap.rasters.fingerprints import fingerprint
from tests.rasters.files import rgb, served, write

RNG = np.random.default_rng(5)


def test_a_fingerprint_survives_copying_and_notices_change(tmp_path):
    scene = rgb((300, 300))
    path = write(tmp_path / "scene.tif", scene, photometric="RGB")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "renamed.tif"
    shutil.copy(path, copy)
    assert fingerprint(path) == fingerprint(copy)
    (tmp_path / "scene.tif.aux.xml").write_text("<PAMDataset/>")
    assert fingerprint(path) == fingerprint(copy)
    scene[1, 150, 150] ^= 1
    write(copy, scene, photometric="RGB")
    assert fingerprint(path) != fingerprint(copy)


def test_a_fingerprint_of_a_mosaic_is_of_its_sources(tmp_path):
    def mosaic(folder, value):
        folder.mkdir()
        write(folder / "part.tif", np.full((1, 40, 40), value, np.uint8))
        text = (
            '<VRTDataset rasterXSize="40" rasterYSize="40"><SRS>EPSG:32608</SRS>'
            "<GeoTransform>500000,1,0,7700000,0,-1</GeoTransform>"
            '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f'<SourceFilename relativeToVRT="0">{folder}/part.tif</SourceFilename>'
            "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
        )
        (folder / "all.vrt").write_text(text)
        return fingerprint(folder / "all.vrt")

    same, moved, other = mosaic(tmp_path / "a", 7), mosaic(tmp_path / "b", 7), mosaic(tmp_path / "c", 8)
    assert same == moved
    assert same != other


def virtual(path, source):
    path.write_text(
        '<VRTDataset rasterXSize="600" rasterYSize="600"><SRS>EPSG:32608</SRS>'
        "<GeoTransform>500000,1,0,7700000,0,-1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


@pytest.mark.parametrize("where", ["zip", "virtual in virtual", "virtual over zip", "part", "server"])
def test_a_fingerprint_notices_change_wherever_the_content_lies(tmp_path, where):
    def print_of(folder, scene):
        folder.mkdir()
        path, archive = write(folder / "a.tif", scene, nodata=0), folder / "a.zip"
        with ZipFile(archive, "w", ZIP_DEFLATED) as file:
            # archives hold times, which copies of an archive share
            file.writestr(ZipInfo("a.tif"), path.read_bytes())
        inside = f"/vsizip/{archive}/a.tif"
        if where == "server":
            with served(folder) as address:
                return fingerprint(f"{address}/a.tif")
        if where == "virtual in virtual":
            return fingerprint(virtual(folder / "b.vrt", virtual(folder / "a.vrt", path)))
        if where == "virtual over zip":
            return fingerprint(virtual(folder / "a.vrt", inside))
        return fingerprint({"zip": inside, "part": f"GTIFF_DIR:1:{path}"}[where])

    scene = RNG.integers(1, 255, (1, 600, 600)).astype(np.uint8)
    other = scene.copy()
    other[:, :200] ^= 1
    same, copied = print_of(tmp_path / "a", scene), print_of(tmp_path / "b", scene)
    assert same == copied
    assert same != print_of(tmp_path / "c", other)


def test_parts_of_a_file_have_fingerprints_of_their_own(tmp_path):
    path = tmp_path / "two.gpkg"
    for table in "ab":
        scene = RNG.integers(1, 255, (4, 300, 300)).astype(np.uint8)
        write(path, scene, driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET=table == "b")
    first, second = (fingerprint(f"GPKG:{path}:{table}") for table in "ab")
    assert first["sizes_bytes"] == second["sizes_bytes"]
    assert first["sha256_of_samples"] != second["sha256_of_samples"]
