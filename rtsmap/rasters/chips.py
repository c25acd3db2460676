"""Chips: pixels of every modality with their validity, on one grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rtsmap.errors import BandError, GridMismatchError
from rtsmap.rasters import grids, levels, reading, sources
from rtsmap.rasters.bands import BAND_UNITS, TERRAIN_BANDS, InputSpec, Modality
from rtsmap.rasters.elevation import ElevationReader, Heights
from rtsmap.rasters.mosaic import DemFiles, ElevationModel
from rtsmap.rasters.opening import local_path
from rtsmap.rasters.radiometry import Radiometry, lattice, measure
from rtsmap.rasters.relief_cells import ReliefCells
from rtsmap.rasters.sources import RasterInfo
from rtsmap.rasters.spectral import BandFiles, check_band_files, check_values, derive, scene_bands
from rtsmap.rasters.tiling import Tile, Window

_Planes = dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True)
class Layer:
    """Pixels of one modality: `pixels` (C, H, W) float32 in the bands' units, `valid` (H, W) bool.

    True means data. Invalid pixels hold 0 and mean nothing.
    """

    pixels: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[1:] != self.valid.shape:
            raise GridMismatchError(
                f"layer: pixels {self.pixels.shape} and valid {self.valid.shape} disagree "
                "(wanted C,H,W and H,W)"
            )
        if self.pixels.dtype != np.float32 or self.valid.dtype != np.bool_:
            raise GridMismatchError(
                f"layer: wanted float32 pixels and bool validity, "
                f"got {self.pixels.dtype} and {self.valid.dtype}"
            )


@dataclass(frozen=True, slots=True)
class Chip:
    """What a detector sees of one tile: one layer a modality, all on `geobox` (the read window's).

    A modality without any data is present with an all-False mask. Raises GridMismatchError when
    layers, geobox and tile do not have the same shape.
    """

    layers: Mapping[str, Layer]
    geobox: GeoBox
    tile: Tile

    def __post_init__(self) -> None:
        wanted = self.tile.read.shape
        shapes = {name: layer.valid.shape for name, layer in self.layers.items()}
        if any(shape != wanted for shape in shapes.values()) or tuple(self.geobox.shape) != wanted:
            raise GridMismatchError(
                f"chip of tile {self.tile.index}: wanted {wanted}, "
                f"got layers {shapes} on a geobox of {tuple(self.geobox.shape)}"
            )


class ChipReader:
    """Reads every modality of a spec for windows of the run's grid, from a scene and perhaps a DEM.

    Files are opened for each call, so one reader serves several threads, and a window's pixels do not
    depend on which block they were read with. `bands` gives 1-based indexes of the scene's bands by
    name where the file itself does not tell, `band_files` rasters of bands that the scene lacks; NDVI and
    NDWI are derived where red, green and near infrared are there. Imagery that is not 8 bit is brought
    onto the 8-bit scale by `radiometry`, which is measured from a sample of the scene where it is not given.
    With `kept_cells` terrain is computed in cells, of which so many are kept for windows to come.
    """

    def __init__(
        self,
        scene: Path | str,
        dem: DemFiles | ElevationModel | None,
        spec: InputSpec,
        geobox: GeoBox,
        bands: Mapping[str, int] | None = None,
        *,
        radiometry: Radiometry | None = None,
        band_files: BandFiles | None = None,
        kept_cells: int = 0,
    ) -> None:
        self._spec = spec
        self._grid = geobox
        self._scene = sources.probe(scene)
        optical = [band for m in spec.modalities if not m.is_terrain for band in m.band_names]
        files = {name: file for name, file in check_band_files(band_files or {}).items() if name in optical}
        self._bands = scene_bands(self._scene, optical, bands, files)
        self._optical = tuple(dict.fromkeys(optical))
        self._assumed_bands = not set(optical) <= set(bands or ())
        self._level = levels.level_for(self._scene, geobox)
        self._resampling = reading.natural_resampling(self._scene, geobox)
        self._elevation = None if dem is None else ElevationReader(dem, geobox)
        self._cells = (
            ReliefCells(self._elevation.relief, tuple(geobox.shape), kept_cells)
            if self._elevation and kept_cells
            else None
        )
        self._files = {name: _probe_band(name, file) for name, file in files.items()}
        for name, info in self._files.items():
            self._check_file(name, info)
        self._radiometry = self._measure() if radiometry is None else radiometry

    @property
    def bands(self) -> dict[str, int]:
        """Number of the scene's band by name, for what is read from imagery."""
        return dict(self._bands)

    @property
    def radiometry(self) -> Radiometry | None:
        """How the imagery comes onto the 8-bit scale; None where it is there."""
        return self._radiometry

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed about the inputs, or found in what was read so far, in sentences."""
        notes = [f"{self._scene.path}: {note}" for note in self._scene.notes]
        band_note = sources.optical_note(self._scene)
        if self._assumed_bands and band_note:
            notes.append(band_note)
        if self._radiometry:
            notes.append(f"{self._scene.path}: is {self._scene.dtype}; {self._radiometry.note}")
        zeros = (info.path for info in self._files.values() if info.fill_is_zero)
        notes += [f"{path}: no nodata is declared; pixels of 0 are taken as fill" for path in zeros]
        return (*notes, *(self._elevation.notes if self._elevation else ()))

    def forget(self) -> None:
        """Let go of the terrain that is kept for windows to come."""
        if self._cells:
            self._cells.forget()

    def vanished(self) -> str | None:
        """A local file that was there and is no more."""
        files = (info.path for info in self._files.values())
        paths = (self._scene.path, *files, *(self._elevation.paths if self._elevation else ()))
        return next((path for path in paths if (file := local_path(path)) and not file.exists()), None)

    def read_block(self, window: Window) -> dict[str, Layer]:
        """One layer a modality; terrain is computed once, however many chips are cut from the block."""
        optical = self._read_optical(window) if self._optical else {}
        relief = self._read_relief(window) if any(m.is_terrain for m in self._spec.modalities) else {}
        return {m.name: _layer(m, relief if m.is_terrain else optical) for m in self._spec.modalities}

    def elevation(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Elevation in metres (H, W) and its validity; nothing is valid without a DEM."""
        if self._elevation is None:
            return np.zeros(window.shape, np.float32), np.zeros(window.shape, np.bool_)
        return self._elevation.elevation(window)

    def heights(self, window: Window) -> Heights:
        """Elevation as in `elevation`, and when it was measured."""
        if self._elevation is None:
            days = np.zeros(window.shape, np.int16)
            return Heights(*self.elevation(window), days, days)
        return self._elevation.heights(window)

    def _measure(self) -> Radiometry | None:
        stretched = {b.name: b for m in self._spec.modalities for b in m.bands if b.name in self._bands}
        bands = [band for band in stretched.values() if band.unit == "DN"]
        if self._scene.dtype == "uint8" or not bands:
            return None
        picked = [list(self._bands).index(band.name) for band in bands]

        def read(window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
            pixels, valid = self._read_bands(window)
            return pixels[picked], valid

        try:
            return measure(bands, tuple(self._grid.shape), read)
        except BandError as exc:
            raise BandError(f"{self._scene.path}: {exc}") from exc

    def _read_bands(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        return reading.read_window(
            self._scene,
            tuple(self._bands.values()),
            self._grid,
            window,
            resampling=self._resampling,
            level=self._level,
        )

    def _read_optical(self, window: Window) -> _Planes:
        found: _Planes = {name: self._read_file(info, window) for name, info in self._files.items()}
        if self._bands:
            pixels, valid = self._read_bands(window)
            planes = dict(zip(self._bands, pixels, strict=True))
            derived = [name for name in self._optical if name not in found and name not in planes]
            measured = (
                {name: self._measured(name, plane) for name, plane in planes.items()} if derived else {}
            )
            found |= {name: derive(name, measured, valid) for name in derived}
            found |= {name: (plane, valid) for name, plane in planes.items()}
        if self._radiometry:
            scale = self._radiometry.apply
            found = {name: (scale(name, plane, valid), valid) for name, (plane, valid) in found.items()}
        return found

    def _measured(self, name: str, plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the file says that its numbers stand for; an offset changes what indices are."""
        band = self._bands[name] - 1
        return plane * np.float32(self._scene.scales[band]) + np.float32(self._scene.offsets[band])

    def _read_file(
        self, info: RasterInfo, window: Window
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """A band with a raster of its own, in its unit."""
        level, how = levels.level_for(info, self._grid), reading.natural_resampling(info, self._grid)
        pixels, valid = reading.read_window(info, [1], self._grid, window, resampling=how, level=level)
        values = pixels[0] * np.float32(info.scale) + np.float32(info.offset)
        return np.where(valid, values, np.float32(0)), valid

    def _check_file(self, name: str, info: RasterInfo) -> None:
        if info.count - info.has_alpha != 1:
            raise BandError(f"{info.path}: has {info.count} bands; wanted one, for {name}")
        if BAND_UNITS[name] == "DN" and info.dtype != "uint8":
            raise BandError(
                f"{info.path}: is {info.dtype}; {name} from a file of its own must be 8 bit, on the scale of "
                "the scene. Or put all bands into one file: gdalbuildvrt -separate OUT.vrt RED GREEN ..."
            )
        if grids.lies_across_edge(self._grid, info.geobox):
            raise GridMismatchError(
                f"{info.path}: the scene lies on both sides of its edge; wanted one piece, in the "
                "scene's CRS: gdalwarp -t_srs EPSG:CODE -te LEFT BOTTOM RIGHT TOP IN OUT.tif"
            )
        windows = lattice(tuple(self._grid.shape))
        found = [values[valid] for values, valid in (self._read_file(info, w) for w in windows)]
        check_values(name, info.path, np.concatenate(found))

    def _read_relief(self, window: Window) -> _Planes:
        if self._elevation is None:
            nothing = np.zeros(window.shape, np.float32), np.zeros(window.shape, np.bool_)
            return dict.fromkeys(TERRAIN_BANDS, nothing)
        relief = (self._cells or self._elevation).relief(window)
        return {name: (band, relief.valid) for name, band in relief.bands.items()}


def _probe_band(name: str, file: str) -> RasterInfo:
    """Look at a band's own raster; of digital numbers 0 is fill where the file does not tell what is."""
    info = sources.probe(file)
    tells = info.has_alpha or info.has_mask or info.nodata is not None
    return info if tells or BAND_UNITS[name] != "DN" else replace(info, fill_is_zero=True)


def cut_chip(layers: Mapping[str, Layer], block: Window, tile: Tile, geobox: GeoBox) -> Chip:
    """The chip of a tile from the layers of `block`; `geobox` is the whole run's grid."""
    if not block.contains(tile.read):
        raise GridMismatchError(f"tile {tile.index} reads {tile.read}, beyond the block {block}")
    rows, cols = tile.read.slices(block)
    cut = {
        name: Layer(layer.pixels[:, rows, cols], layer.valid[rows, cols]) for name, layer in layers.items()
    }
    return Chip(cut, grids.window_geobox(geobox, tile.read), tile)


def _layer(modality: Modality, planes: _Planes) -> Layer:
    parts = [planes[name] for name in modality.band_names]
    valid = parts[0][1]
    if any(other is not valid for _, other in parts):
        valid = np.logical_and.reduce([other for _, other in parts])
        return Layer(np.stack([np.where(valid, pixels, np.float32(0)) for pixels, _ in parts]), valid)
    return Layer(np.stack([pixels for pixels, _ in parts]), valid)
