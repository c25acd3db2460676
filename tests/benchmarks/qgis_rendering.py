"""A map drawn by QGIS with the style that it carries: what a mapper sees who opens it.

Runs with the Python that QGIS is installed for, without a display:

    QT_QPA_PLATFORM=offscreen python3 tests/benchmarks/qgis_rendering.py MAP.gpkg SCENE.tif OUT.png
"""

from __future__ import annotations

import sys

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize


def main(gpkg: str, scene: str, png: str) -> None:
    """Load the layers as QGIS does when a file is dropped on it, and draw them over the scene."""
    application = QgsApplication([], GUIenabled=False)
    application.initQgis()
    footprints = QgsVectorLayer(f"{gpkg}|layername=rts_footprints", "footprints", "ogr")
    coverage = QgsVectorLayer(f"{gpkg}|layername=coverage", "coverage", "ogr")
    imagery = QgsRasterLayer(scene, "scene")
    for layer in (footprints, coverage, imagery):
        if not layer.isValid():
            raise SystemExit(f"{layer.name()}: QGIS cannot open it")
        print(f"{layer.name()}: {layer.crs().authid()}", getattr(layer, "featureCount", lambda: "raster")())
    for layer in (footprints, coverage):
        renderer = layer.renderer()
        labels = [item.label() for item in renderer.legendSymbolItems()]
        print(f"{layer.name()}: drawn as {renderer.type()} by '{renderer.classAttribute()}': {labels}")
    settings = QgsMapSettings()
    settings.setLayers([footprints, coverage, imagery])
    settings.setDestinationCrs(footprints.crs())
    settings.setOutputSize(QSize(1200, 1200))
    settings.setExtent(coverage.extent())
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    errors = [f"{error.layerID}: {error.message}" for error in job.errors()]
    if errors or not job.renderedImage().save(png):
        raise SystemExit(f"not drawn: {errors}")
    print(png)
    application.exitQgis()


if __name__ == "__main__":
    main(*sys.argv[1:4])
