"""Labels cut to chips, with pycocotools and rasterio as judges."""

from __future__ import annotations

import contextlib
import io
import json
import warnings

import numpy as np
import pytest
import rasterio
import shapely
import shapely.affinity
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pycocotools.coco import COCO
from rasterio.features import rasterize

from rtsmap.errors import LabelError
from rtsmap.instances.chip_labels import coco_document, cut_labels
from rtsmap.rasters.tiling import TileOptions, plan_tiles
from rtsmap.vectors.labels import read_polygons
from tests.shared_data import shared

GRID = GeoBox((96, 128), Affine(4.0, 0.0, -1_000_000.0, 0.0, -4.0, 2_000_000.0), "EPSG:3413")


def on_ground(geometry, geobox=GRID):
    return shapely.affinity.affine_transform(geometry, geobox.affine.to_shapely())


def blob(x, y, radius, seed, points=24):
    random = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius * random.uniform(0.6, 1.0, points)
    return shapely.Polygon(np.column_stack([x + radii * np.cos(angles), y + radii * np.sin(angles)]))


def as_coco(annotations, geobox, tmp_path):
    image = {"id": 1, "file_name": "chip.tif", "height": geobox.shape[0], "width": geobox.shape[1]}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_document([image], annotations)))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def to_mask(coco, annotation):
    with warnings.catch_warnings():
        # pycocotools up to 2.0.8 hands numpy 2 an array without the `copy` argument.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco.annToMask(annotation).astype(bool)


def cut(shapes, geobox=GRID, **options):
    return cut_labels(shapely.STRtree(shapes), geobox, image_id=1, **options)


blobs = st.builds(
    blob,
    st.floats(-20, 150),
    st.floats(-20, 120),
    st.floats(3, 60),
    st.integers(0, 10_000),
)


@settings(max_examples=150, deadline=None)
@given(shape=blobs, with_hole=st.booleans())
def test_masks_are_those_of_another_rasteriser(shape, with_hole, tmp_path_factory):
    if with_hole:
        hole = shapely.affinity.scale(shape, 0.5, 0.5, origin=shape.representative_point())
        shape = shapely.difference(shape, hole)
    ground = on_ground(shape)
    annotations = cut([ground])
    coco = as_coco(annotations, GRID, tmp_path_factory.mktemp("coco"))
    ours = np.zeros(GRID.shape, dtype=bool)
    for annotation in annotations:
        ours |= to_mask(coco, annotation)
    theirs = rasterize([ground], out_shape=GRID.shape, transform=GRID.affine).astype(bool)
    inside = shapely.intersection(shape, shapely.box(0, 0, 128, 96))
    # Two honest rasterisers may disagree on pixels that the outline crosses, and only there.
    assert (ours ^ theirs).sum() <= 0.5 * inside.length + 4
    assert not (ours ^ theirs)[far_from(shape.boundary)].any()


def far_from(outline):
    rows, cols = np.mgrid[0:96, 0:128]
    return shapely.distance(shapely.points(cols + 0.5, rows + 0.5), outline) > 1.5


@settings(max_examples=60, deadline=None)
@given(shape=blobs, chip=st.integers(16, 60))
def test_chips_that_partition_the_grid_share_the_area(shape, chip):
    tiles = plan_tiles(GRID.shape, TileOptions(chip, 0))
    cuts = [a for tile in tiles for a in cut([on_ground(shape)], GRID[tile.core.slices()], min_area_px=0.0)]
    inside = shapely.intersection(shape, shapely.box(0, 0, 128, 96)).area
    assert sum(a["area"] for a in cuts) == pytest.approx(inside, abs=0.02 * len(cuts) + 0.01)
    assert sum(a["visible_share"] for a in cuts) == pytest.approx(inside / shape.area, abs=1e-3)


def test_area_is_of_the_polygon_and_not_of_its_box():
    triangle = shapely.Polygon([(10, 10), (50, 10), (10, 50)])
    (annotation,) = cut([on_ground(triangle)])
    assert annotation["area"] == pytest.approx(800)
    assert annotation["bbox"] == pytest.approx([10, 10, 40, 40])
    assert (annotation["iscrowd"], annotation["category_id"], annotation["image_id"]) == (0, 1, 1)
    assert annotation["truncated"] is False
    assert annotation["visible_share"] == 1.0


def test_an_instance_cut_in_two_by_the_border_stays_one():
    horseshoe = shapely.Polygon(
        [(-20, 10), (30, 10), (30, 20), (-10, 20), (-10, 40), (30, 40), (30, 50), (-20, 50)]
    )
    (annotation,) = cut([on_ground(horseshoe)])
    assert len(annotation["segmentation"]) == 2
    assert annotation["truncated"] is True
    assert annotation["area"] == pytest.approx(600)
    assert annotation["visible_share"] == pytest.approx(600 / horseshoe.area, abs=1e-5)


def test_truncated_is_said_of_exactly_those_that_cross_the_border():
    inside, touching, crossing, outside = (
        shapely.box(10, 10, 20, 20),
        shapely.box(0, 30, 12, 40),
        shapely.box(120, 10, 130, 20),
        shapely.box(128, 40, 140, 50),
    )
    cuts = cut([on_ground(box) for box in (inside, touching, crossing, outside)])
    assert {a["label"]: a["truncated"] for a in cuts} == {0: False, 1: False, 2: True}
    assert [a["id"] for a in cuts] == [1, 2, 3]


def test_holes_are_not_slump_but_islands_in_them_are(tmp_path):
    ring = shapely.difference(shapely.box(20, 20, 70, 70), shapely.box(30, 30, 60, 60))
    slump = shapely.union(ring, shapely.box(40, 40, 50, 50))
    annotations = cut([on_ground(slump)])
    mask = to_mask(as_coco(annotations, GRID, tmp_path), annotations[0])
    assert np.array_equal(mask, rasterize([slump], out_shape=GRID.shape).astype(bool))
    assert annotations[0]["area"] == mask.sum() == 50**2 - 30**2 + 10**2


def test_a_mask_that_begins_with_slump_keeps_its_run_lengths(tmp_path):
    corner = shapely.difference(shapely.box(-5, -5, 40, 40), shapely.box(5, 5, 20, 20))
    annotations = cut([on_ground(corner)])
    mask = to_mask(as_coco(annotations, GRID, tmp_path), annotations[0])
    assert mask[0, 0] == 1
    assert mask.sum() == 40**2 - 15**2


def test_specks_are_left_out():
    assert cut([on_ground(shapely.box(10, 10, 10.5, 10.5))]) == []
    assert cut([on_ground(shapely.box(127.9, 10, 150, 15))]) == []


def test_labels_of_a_real_site(tmp_path):
    scene = next(shared("rts_sites/Peel").glob("S2_*.tif"))
    with rasterio.open(scene) as source:
        geobox = GeoBox(source.shape, source.transform, str(source.crs))
    for number in range(1, 13):
        labels = read_polygons(shared(f"rts_sites/Peel/labels/expert{number:02}.shp")).to_crs(geobox.crs)
        annotations = cut(list(labels.geometries), geobox)
        pixel_m2 = abs(geobox.affine.determinant)
        seen = [g for g in labels.geometries if g.intersection(geobox.extent.geom).area >= pixel_m2]
        wanted = sum(g.intersection(geobox.extent.geom).area for g in seen) / pixel_m2
        assert len(annotations) == len(seen) > 0
        assert sum(a["area"] for a in annotations) == pytest.approx(wanted, rel=0.01)
        assert len(as_coco(annotations, geobox, tmp_path).anns) == len(annotations)


def test_a_document_with_doubled_or_orphaned_ids_is_refused():
    image = {"id": 1, "file_name": "a.tif", "height": 96, "width": 128}
    (annotation,) = cut([on_ground(shapely.box(10, 10, 20, 20))])
    with pytest.raises(LabelError, match="unique"):
        coco_document([image], [annotation, annotation])
    with pytest.raises(LabelError, match="unique"):
        coco_document([image, image], [])
    with pytest.raises(LabelError, match="not listed"):
        coco_document([], [annotation])
