from __future__ import annotations

import numpy as np
from PIL import Image

from rtsmap.runs.mapping import predict
from rtsmap.runs.preview import draw_preview
from tests.runs.blob_scenes import blob_labels, engine, write_dem, write_scene


def yellow_px(picture):
    """How many pixels have the colour of found outlines."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return int(((red > 200) & (green > 160) & (blue < 120)).sum())


def test_outlines_are_drawn_on_scene_and_relief(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", blob_labels((160, 160), seed=1, count=8))
    dem = write_dem(tmp_path / "dem.tif", scene.geobox)
    report = predict(scene.path, dem, out=tmp_path / "map.gpkg", model=engine())
    assert report.footprints >= 3
    pictures = []
    for name, elevation in (("both", dem), ("one", None)):
        draw_preview(report.out, scene.path, elevation, tmp_path / f"{name}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int))
    both, one = pictures
    assert both.shape[1] > 1.9 * one.shape[1]
    half = both.shape[1] // 2
    assert yellow_px(both[:, :half]) > 200
    assert yellow_px(both[:, half:]) > 200
