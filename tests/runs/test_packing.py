from __future__ import annotations

import numpy as np
from shapely.geometry import box

from rtsmap.mm.packs import KINDS
from rtsmap.rasters.bands import TERRAIN, InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.sources import probe
from rtsmap.rasters.terrain import shaded_relief, slope_degrees
from rtsmap.rasters.tiling import Window
from rtsmap.runs.packing import burn_kinds, burn_labels, training_image
from rtsmap.simulate.presets import find_preset
from rtsmap.simulate.scenes import write_scene
from rtsmap.vectors.labels import Polygons
from tests.rasters.files import CORNER, geobox

RESOLUTION_M = find_preset("demo").ground_sample_distance_m


def square(row, col, side):
    """A polygon that covers whole pixels of the 4 m test grid."""
    left, top = CORNER[0] + 4 * col, CORNER[1] - 4 * row
    return box(left, top - 4 * side, left + 4 * side, top)


def test_a_packed_scene_is_what_predict_reads(tmp_path):
    made = write_scene("demo", 3, tmp_path, size_px=192)
    image = training_image(made.scene, made.dem, made.truth, RESOLUTION_M, lookalikes=made.lookalikes)
    grid = probe(made.scene).geobox
    layers = ChipReader(made.scene, made.dem, InputSpec(RESOLUTION_M, (TERRAIN,)), grid).read_block(
        Window(0, 0, *grid.shape)
    )
    relief = layers["terrain"]
    inside = relief.valid
    np.testing.assert_array_equal(image.terrain.valid, inside)
    right, up = image.terrain.gradient
    again = np.stack([image.terrain.relative_elevation, slope_degrees(right, up), shaded_relief(right, up)])
    np.testing.assert_allclose(again[:, inside], relief.pixels[:, inside], atol=1e-3)
    assert image.labels.max() >= 1
    assert set(np.unique(image.kinds)) <= set(range(len(KINDS) + 1))


def test_small_labels_keep_their_place_on_large_ones():
    labels = burn_labels([square(2, 2, 2), square(0, 0, 8)], geobox((10, 10)))
    assert (labels == 1).sum() == 60
    assert (labels[2:4, 2:4] == 2).all()
    assert not burn_labels([], geobox((4, 4))).any()


def test_kinds_are_burned_by_name():
    polygons = Polygons((square(0, 0, 3), square(5, 5, 2)), geobox((8, 8)).crs, {"kind": ["snow", "gully"]})
    kinds = burn_kinds(polygons, geobox((8, 8)))
    assert (kinds[:3, :3] == KINDS.index("snow") + 1).all()
    assert (kinds[5:7, 5:7] == KINDS.index("gully") + 1).all()
    assert (kinds > 0).sum() == 13
