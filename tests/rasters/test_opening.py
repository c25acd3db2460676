"""Reads that fail are tried again; what then comes must come from files that open."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_AppDefinedError
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from rtsmap.errors import InputError, ReadError
from rtsmap.rasters import opening, sources
from rtsmap.rasters.opening import (
    absolute,
    borrowed,
    is_remote,
    kept_open,
    local_path,
    open_sources,
    patiently,
    with_path,
)
from rtsmap.rasters.writing import write_geotiff
from tests.shared_data import shared

POLAR = "EPSG:3413"


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    monkeypatch.setattr(opening, "LOCAL_PAUSES_S", (0.0, 0.0))


@pytest.fixture
def tile(tmp_path):
    path = tmp_path / "a & b.tif"
    geobox = GeoBox((8, 8), Affine(4, 0, 0, 0, -4, 32), "EPSG:3413")
    write_geotiff(path, np.ones((1, 8, 8), np.float32), geobox)
    return path


def virtual(path):
    name = str(path).replace("&", "&amp;")
    return f'<VRTDataset><SourceFilename relativeToVRT="0" shared="0">{name}</SourceFilename></VRTDataset>'


def failing(times, exc=RasterioIOError):
    """A read that fails so many times before it gives 7; how often it was called stands in `calls`."""

    def read():
        read.calls += 1
        if read.calls <= times:
            raise exc("a bad moment")
        return 7

    read.calls = 0
    return read


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_bad_moment_passes(times, tile):
    read = failing(times)
    assert patiently(read, str(tile), "tile") == 7
    assert read.calls == times + 1


def test_what_stays_unreadable_is_named(tile):
    with pytest.raises(ReadError, match="tile: a bad moment"):
        patiently(failing(3, OSError), str(tile), "tile")


def test_other_errors_pass_at_once(tile):
    read = failing(1, ValueError)
    with pytest.raises(ValueError, match="a bad moment"):
        patiently(read, str(tile), "tile")
    assert read.calls == 1


class Server(ThreadingHTTPServer):
    """Serves a file after so many failures: answers of 500, or connections that are dropped."""

    def __init__(self, path, failures, code):
        super().__init__(("127.0.0.1", 0), Handler)
        self.path, self.failures, self.code, self.asked = path, failures, code, 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}/{path.name}"


class Handler(SimpleHTTPRequestHandler):
    def send_head(self):
        self.server.asked += 1
        if self.server.asked > self.server.failures:
            return super().send_head()
        if self.server.code:
            self.send_error(self.server.code)
        else:
            self.connection.close()
        return None

    def translate_path(self, path):
        return str(self.server.path) if path.endswith(self.server.path.name) else super().translate_path(path)

    def log_message(self, *_):
        pass


@contextmanager
def serving(path, failures, code=None):
    with Server(path, failures, code) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def served(tile):
    return tile.rename(tile.with_name("served.tif"))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(opening, "REMOTE_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", [None, 500])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_server_is_asked_again_though_gdal_remembers_its_failure(served, failures, code):
    with serving(served, failures, code) as server:
        assert sources.probe(server.address).geobox == sources.probe(served).geobox


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("code", "tries"), [(404, 1), (403, 1), (500, 4)])
def test_what_a_server_does_not_deliver_is_its_fault(served, code, tries):
    with serving(served, 1000, code) as server:
        with pytest.raises(InputError, match=f"its server does not deliver it .*{code}"):
            sources.probe(server.address)
        once = server.asked
    assert tries <= once <= 3 * tries


def test_a_row_with_the_number_of_a_refusal_is_no_refusal(monkeypatch):
    monkeypatch.setattr(opening, "REMOTE_PAUSES_S", (0.0,))
    outcomes = iter((RasterioIOError("TIFFFillTile:Read error at row 404, col 0"), 7))

    def read():
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    assert patiently(read, "https://example.com/scene.tif", "scene") == 7


def test_a_tile_that_is_gone_is_not_read_as_no_data(tile):
    assert patiently(failing(1), virtual(tile), "tiles") == 7
    tile.unlink()
    read = failing(1)
    # GDAL complains once, and then may give no data for the tile without an error
    with pytest.raises(ReadError, match="No such file"):
        patiently(read, virtual(tile), "tiles")
    assert read.calls == 1


def test_sources_within_sources_are_opened(tile):
    from xml.sax.saxutils import escape

    open_sources(virtual(tile))
    nested = virtual("X").replace("X", escape(virtual(tile)))
    with pytest.raises(RasterioIOError):
        open_sources(nested.replace("a &amp;amp; b", "gone"))


def test_files_that_are_kept_open_are_those_on_disk(tile):
    def total():
        with borrowed(str(tile)) as src:
            return int(src.read().sum())

    geobox = GeoBox((8, 8), Affine(4, 0, 0, 0, -4, 32), "EPSG:3413")
    with kept_open():
        with borrowed(str(tile)) as first, borrowed(str(tile)) as other:
            assert first is not other
        with borrowed(str(tile)) as again:
            assert again in (first, other)
        assert total() == 64
        write_geotiff(tile, np.full((1, 8, 8), 2, np.float32), geobox)
        assert total() == 128
        with borrowed(str(tile)) as last:
            pass
        with pytest.raises(RasterioIOError, match="a bad moment"), borrowed(str(tile)):
            raise RasterioIOError("a bad moment")
        assert last.closed
        tile.unlink()
        with pytest.raises(RasterioIOError):
            total()
    assert all(src.closed for src in (first, other, last))


def test_nothing_stays_open_without_a_reason(tile):
    with borrowed(str(tile)) as src:
        assert not src.closed
    assert src.closed


def test_an_error_of_gdal_itself_is_a_sentence(tile, monkeypatch):
    """Seen with headers whose tags had been damaged."""

    def damaged(*_):
        raise CPLE_AppDefinedError(3, 1, "TIFFFetchNormalTag: custom tag 65535 is not read from file")

    monkeypatch.setattr(sources, "_describe", damaged)
    with pytest.raises(InputError, match=r"GDAL cannot open it as a raster .*custom tag 65535"):
        sources.probe(tile)


def test_warnings_of_gdal_are_not_printed(capfd):
    """GDAL warns about this file in each thread that has not told it whom to tell."""
    scene = str(next(shared("rts_sites/Peel").glob("S2_*.tif")))
    window = Window(0, 0, 32, 32)

    def read(_):
        with borrowed(scene) as src:
            return src.read(1, window=window).shape

    with kept_open(), ThreadPoolExecutor(2) as pool:
        assert set(pool.map(read, range(4))) == {(32, 32)}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("dataset", "remote", "file"),
    [
        ("folder/scene.tif", False, "folder/scene.tif"),
        ("C:\\maps\\scene.tif", False, "C:\\maps\\scene.tif"),
        ("GPKG:folder/maps.gpkg:2020", False, "folder/maps.gpkg"),
        ("GTIFF_DIR:2:/maps/scene.tif", False, "/maps/scene.tif"),
        ("GTIFF_DIR:off:1042:scene.tif", False, "scene.tif"),
        ("SENTINEL2_L2A:S2.SAFE/MTD.xml:10m:EPSG_32608", False, "S2.SAFE/MTD.xml"),
        ('NETCDF:"a b.nc":dem', False, "a b.nc"),
        ('HDF4_SDS:UNKNOWN:"a.hdf":0', False, "a.hdf"),
        ('HDF5:"a.h5"://grid/dem', False, "a.h5"),
        ('NETCDF:"/vsicurl/https://where.org/a.nc":dem', True, None),
        ("/vsizip/scenes.zip/scene.tif", False, None),
        ("zip://scenes.zip!scene.tif", False, None),
        ("zip+file://scenes.zip!scene.tif", False, None),
        ("<VRTDataset><SourceFilename>a.tif</SourceFilename></VRTDataset>", False, None),
        ("<VRTDataset><SourceFilename>/vsizip/a.zip/a.tif</SourceFilename></VRTDataset>", False, None),
        ("<VRTDataset><SourceFilename>/vsis3/pail/a.tif</SourceFilename></VRTDataset>", True, None),
        ("/vsicurl/https://where.org/scene.tif", True, None),
        ("/vsicurl_streaming/https://where.org/scene.tif", True, None),
        ("/vsizip//vsicurl/https://where.org/scenes.zip/scene.tif", True, None),
        ("https://where.org/scene.tif", True, None),
        ("zip+https://where.org/scenes.zip!scene.tif", True, None),
        ("s3://pail/scene.tif", True, None),
    ],
)
def test_what_lies_on_a_server_is_told_from_what_does_not(dataset, remote, file):
    assert is_remote(dataset) == remote
    assert local_path(dataset) == (None if file is None else Path(file))


def test_a_part_of_a_file_is_called_by_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_geotiff("a.tif", np.ones((1, 8, 8), np.float32), GeoBox((8, 8), Affine(4, 0, 0, 0, -4, 32), POLAR))
    shutil.copy("a.tif", "GPKG:a.tif")
    assert with_path("GTIFF_DIR:1:a.tif", Path.resolve) == f"GTIFF_DIR:1:{tmp_path}/a.tif"
    assert with_path("GPKG:a.tif", Path.resolve) == f"{tmp_path}/GPKG:a.tif"
    assert with_path("/vsizip/a.zip/a.tif", Path.resolve) == "/vsizip/a.zip/a.tif"
    monkeypatch.chdir("/")
    assert sources.probe(f"GTIFF_DIR:1:{tmp_path}/a.tif").count == 1
    with pytest.raises(InputError, match=r"GTIFF_DIR:1:a\.tif: there is no such file"):
        sources.probe("GTIFF_DIR:1:a.tif")


@pytest.mark.parametrize(
    "name", ["/vsizip/{}s.zip/a.tif", "/vsizip/./{}s.zip/a.tif", "/vsizip/{{{}s.zip}}/a.tif"]
)
@pytest.mark.parametrize("folder", ["", "in here/"])
def test_what_lies_in_an_archive_is_found_from_any_folder(tmp_path, monkeypatch, name, folder):
    monkeypatch.chdir(tmp_path)
    write_geotiff("a.tif", np.ones((1, 8, 8), np.float32), GeoBox((8, 8), Affine(4, 0, 0, 0, -4, 32), POLAR))
    (tmp_path / folder).mkdir(exist_ok=True)
    with ZipFile(f"{folder}s.zip", "w") as archive:
        archive.write("a.tif")
    whole = absolute(name.format(folder))
    assert absolute(whole) == whole
    monkeypatch.chdir("/")
    assert sources.probe(whole).geobox.shape == (8, 8)
    assert absolute("/vsizip//vsicurl/http://example.org/s.zip/a.tif").startswith("/vsizip//vsicurl/")


def test_an_archive_that_does_not_open_is_no_fault_of_a_server(tmp_path):
    archive = tmp_path / "scenes.zip"
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError) as told:
        sources.probe(f"/vsizip/{archive}/scene.tif")
    assert "server" not in str(told.value)
