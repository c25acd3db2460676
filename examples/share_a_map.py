"""Give a map to others: other formats, the forms that data sets ask for, a page to review, the review itself.

python examples/share_a_map.py MAP.gpkg [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rtsmap.runs.report import write_report
from rtsmap.vectors.export import Selection, export_map
from rtsmap.vectors.geopackage import read_map
from rtsmap.vectors.profiles import ProfileOptions, export_profile
from rtsmap.vectors.reviews import FORMAT, apply_review


def main(gpkg: Path, folder: Path) -> None:
    """Write everything beside each other into the folder."""
    for name in ("slumps.csv", "slumps.kml", "slumps.geojson", "slumps.parquet"):
        export_map(gpkg, folder / name, select=Selection(min_score=0.5), overwrite=True)
    for note in export_map(gpkg, folder / "polar.shp", crs="EPSG:3413", overwrite=True):
        print(note)

    report = write_report(gpkg, folder / "report.html", limit=50, overwrite=True)
    print(f"{report.out}: open it, accept or reject {report.shown} footprints, save the review")

    # the page saves such a file; here the first footprint is accepted without looking
    first = read_map(gpkg)["id"].iloc[0]
    review = {"format": FORMAT, "reviews": [{"id": first, "review": "accepted", "comment": "an example"}]}
    (folder / "review.json").write_text(json.dumps(review), encoding="utf-8")
    print(apply_review(gpkg, folder / "review.json"))

    told = {
        "RegionName": "Simulated tundra",
        "CreatorLab": "A. Name, B University",
        "BaseMapDate": "2024-08-01",
        "BaseMapSource": "simulated",
    }
    export_profile(gpkg, folder / "arts.geojson", "arts", options=ProfileOptions(told), overwrite=True)
    export_profile(gpkg, folder / "pdg.gpkg", "pdg", overwrite=True)
    export_profile(gpkg, folder / "coco.json", "challenge", overwrite=True)
    export_profile(gpkg, folder / "item.json", "stac", overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "."))
