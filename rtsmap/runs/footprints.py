"""From slumps to footprints: outlines, and the figures that need the inputs once more."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rtsmap.errors import ReadError
from rtsmap.instances.attributes import (
    Footprint,
    Terrain,
    instance_terrain,
    make_footprint,
    terrain_window,
)
from rtsmap.instances.seams import Instance, TileMap
from rtsmap.rasters.acquisition import Acquisition
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.elevation import DAY_0, Heights
from rtsmap.rasters.tiling import Window
from rtsmap.timing import stage

logger = logging.getLogger(__name__)

_STRIP_PX = 1 << 22


@dataclass(frozen=True, slots=True)
class FootprintMaker:
    """Makes footprints of slumps on `geobox`; several threads may use one.

    `leading` reads the leading modality alone, `heights` elevation, if there is any. `whole` are the
    indexes of tiles without a gap in their imagery. `scene_fingerprint` identifies the scene in footprint
    ids, `acquisition` says its name and when it was taken.
    """

    geobox: GeoBox
    leading: ChipReader
    heights: Callable[[Window], Heights]
    tiles: TileMap
    whole: frozenset[int]
    scene_fingerprint: str
    acquisition: Acquisition
    simplify_m: float
    min_speck_px: int

    @stage("footprints")
    def make(self, ranked: tuple[int, Instance]) -> Footprint:
        """The footprint of a slump; `ranked` is what `with_ranks` gives."""
        rank, instance = ranked
        terrain, dem_date = self._terrain(instance)
        return make_footprint(
            instance,
            self.geobox,
            scene_fingerprint=self.scene_fingerprint,
            simplify_m=self.simplify_m,
            min_speck_px=self.min_speck_px,
            valid_share=self._valid_share(instance),
            terrain=terrain,
            rank=rank,
            scene_id=self.acquisition.scene_id,
            acquired=self.acquisition.acquired,
            dem_date=dem_date,
        )

    def _valid_share(self, instance: Instance) -> float:
        window = instance.window
        if self._is_whole(window):
            return 1.0
        valid = 0
        for strip in _strips(window):
            # a slump beside a tile that failed: what cannot be read there is not data
            with suppress(ReadError):
                layers = self.leading.read_block(strip).values()
                valid += sum(
                    int(np.count_nonzero(layer.valid & instance.inside[strip.slices(window)]))
                    for layer in layers
                )
        return valid / instance.area_px

    def _is_whole(self, window: Window) -> bool:
        """True when tiles without a gap answer for all of the window."""
        cores = [
            t.core.intersection(window) for t in self.tiles.answering_for(window) if t.index in self.whole
        ]
        return sum(core.height * core.width for core in cores) == window.height * window.width

    def _terrain(self, instance: Instance) -> tuple[Terrain | None, str | None]:
        """Figures of the elevation, and when it was measured."""
        window = terrain_window(instance.window, self.geobox)
        try:
            heights = self.heights(window)
        except ReadError as exc:
            logger.warning("a slump at pixel %s is without terrain: %s", instance.pixel, exc)
            return None, None
        terrain = None
        if heights.valid.any():
            terrain = instance_terrain(instance, self.geobox, window, heights.elevation, heights.valid)
        here = instance.window.slices(window)
        return terrain, dem_date(heights.first_day[here], heights.last_day[here], instance.inside)


class FootprintsAhead:
    """Footprints of slumps that are likely to be on the map, made in a thread while the network works.

    `maker` is asked for when the first one is begun. What was begun and is never asked for is lost work, no
    more.
    """

    def __init__(self, maker: Callable[[], FootprintMaker]) -> None:
        self._maker = cache(maker)
        self._pool = ThreadPoolExecutor(1, "footprints")
        self._begun: dict[tuple[Any, ...], tuple[Instance, Future[Footprint]]] = {}

    def begin(self, instance: Instance) -> None:
        """Begin the footprint of a slump that is the only one with its representative pixel, as most are."""
        key = _key(instance)
        if key not in self._begun:
            self._begun[key] = instance, self._pool.submit(self._maker().make, (0, instance))

    def make(self, ranked: tuple[int, Instance]) -> Footprint:
        """What the maker makes, if it was begun by what it has made."""
        rank, instance = ranked
        begun, made = self._begun.pop(_key(instance), (None, None))
        same = begun is not None and np.array_equal(begun.mask, instance.mask)
        return made.result() if made and same and rank == 0 else self._maker().make(ranked)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _key(instance: Instance) -> tuple[Any, ...]:
    """All that goes into a footprint but the mask."""
    return (
        instance.window,
        instance.pixel,
        instance.score,
        instance.n_parts,
        instance.seam_unconfirmed,
        instance.modalities,
        instance.mask_threshold,
    )


def dem_date(
    first_day: npt.NDArray[np.int16], last_day: npt.NDArray[np.int16], inside: npt.NDArray[np.bool_]
) -> str | None:
    """The day on which the elevation `inside` was measured, or the first and the last one (ISO 8601)."""
    firsts, lasts = first_day[inside & (first_day > 0)], last_day[inside & (last_day > 0)]
    if not (len(firsts) and len(lasts)):
        return None
    first, last = (DAY_0 + timedelta(days=int(day)) for day in (firsts.min(), lasts.max()))
    return first.isoformat() if first == last else f"{first.isoformat()}/{last.isoformat()}"


def fingerprint_text(fingerprint: Mapping[str, Any]) -> str:
    """A fingerprint as one string."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def with_ranks(instances: Iterator[Instance]) -> Iterator[tuple[int, Instance]]:
    """Slumps numbered among those with the same representative pixel, so that each gets its own id."""
    seen: Counter[tuple[int, int]] = Counter()
    for instance in instances:
        yield seen[instance.pixel], instance
        seen[instance.pixel] += 1


def _strips(window: Window) -> Iterator[Window]:
    """Rows of the window in pieces that fit into memory, however large the slump is."""
    rows = max(1, _STRIP_PX // window.width)
    for row in range(window.row0, window.row1, rows):
        yield Window(row, window.col0, min(row + rows, window.row1), window.col1)
