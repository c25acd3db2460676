"""The report: one file that needs nothing else, shows what is so, and takes a review in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import shapely
from odc.geo.geobox import GeoBox
from PIL import Image

from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.coverage import CoverageArea
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs.in_process import InProcess
from rtsmap.runs.many import predict_scenes
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.runs.report import uncertainty, write_report
from rtsmap.runs.scene_lists import read_scenes
from rtsmap.vectors.geopackage import MapLayers, read_layers, read_map, write_layers, write_map
from rtsmap.vectors.reviews import apply_review
from rtsmap.vectors.united import standing
from tests.runs.blob_scenes import LEFT, TOP, blob_labels, engine, grid, write_dem, write_scene
from tests.vectors.samples import RECORD, UTM, add_by_hand, footprint

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '"><img src=x onerror=alert(1)></script><script>document.title="broken"</script>&<b>\'Ж🛰 -->'


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A map of blobs, with its scene and a DEM over the western part."""
    folder = tmp_path_factory.mktemp("report")
    labels = blob_labels((300, 400), seed=5, count=14)
    valid = np.ones(labels.shape, bool)
    valid[250:, 300:] = False
    scene = write_scene(folder / "scène 1.tif", labels, valid)
    dem = write_dem(folder / "dem.tif", scene.geobox, share=0.5)
    options = PredictOptions(second_look=False)
    predict(scene.path, dem, out=folder / "map.gpkg", model=engine(), options=options, discard_run=True)
    layers = read_layers(folder / "map.gpkg")
    scores = np.linspace(0.35, 0.95, len(layers.footprints))
    layers = MapLayers(layers.footprints.assign(score=scores), layers.coverage, layers.run_record)
    write_layers(folder / "map.gpkg", layers, overwrite=True)
    return folder


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self._open[-1:]:
            element[2].append(data)

    def find(self, tag, **wanted):
        return [
            (attrs, "".join(text))
            for name, attrs, text in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]


def titles_of(reader, tag, kind=None):
    """The `title` element that follows each element of a tag, and of a class where one is named."""
    return [
        (attrs, "".join(following[2]))
        for (name, attrs, _), following in zip(reader.elements, reader.elements[1:], strict=False)
        if name == tag and following[0] == "title" and kind in {None, attrs.get("class")}
    ]


@pytest.fixture(scope="module")
def page(inputs):
    facts = write_report(inputs / "map.gpkg", inputs / "page.html")
    return facts, Reader((inputs / "page.html").read_text(encoding="utf-8"))


def test_every_footprint_is_there_most_uncertain_first(inputs, page):
    facts, reader = page
    slumps = read_map(inputs / "map.gpkg").set_index("id")
    cards = [attrs["data-id"] for attrs, _ in reader.find("article")]
    assert sorted(cards) == sorted(slumps.index)
    assert facts.footprints == facts.shown == len(cards)
    away = (slumps.loc[cards, "score"] - 0.5).abs()
    assert away.is_monotonic_increasing
    outlines = [attrs["href"] for attrs, _ in reader.find("a")]
    assert sorted(outlines) == sorted(f"#c-{identity}" for identity in cards)


def test_bars_of_scores_have_the_colours_of_their_outlines(page):
    bars = {
        float(re.match(r"(\S+) to", title)[1]): attrs["style"].removeprefix("fill:")
        for (attrs, _), (_, title) in zip(page[1].find("rect"), titles_of(page[1], "rect"), strict=True)
        if "style" in attrs
    }
    outlines = [
        (float(title.removeprefix("score ")), attrs["stroke"])
        for (attrs, _), (_, title) in zip(
            page[1].find("path", **{"class": "slump"}), titles_of(page[1], "path", "slump"), strict=True
        )
    ]
    assert len({colour for _, colour in outlines}) > 3
    for score, colour in outlines:
        assert bars[max(low for low in bars if low <= score + 1e-9)] == colour


def test_nothing_is_loaded_from_anywhere(inputs, page):
    text = (inputs / "page.html").read_text(encoding="utf-8")
    assert (
        "default-src 'none'"
        in page[1].find("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    )
    for _, attrs, _ in page[1].elements:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert re.match(r"(data:image/jpeg;base64,|#c-)", attrs.get(name) or "#c-")
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)


def test_pictures_show_the_slump_under_its_outline(inputs, page):
    """What is inside an outline is red in the scene; the outline is drawn in the picture's own pixels."""
    seen = 0
    for attrs, _ in page[1].find("article"):
        picture, width, path = first_picture(inputs / "page.html", attrs["data-id"])
        rings = [
            np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", ring), float) for ring in path.split("Z") if ring
        ]
        inside = shapely.Polygon(rings[0]).buffer(-2)
        rows, cols = np.mgrid[: picture.shape[0], : picture.shape[1]]
        assert picture.shape[1] == width
        mask = shapely.contains_xy(inside, cols + 0.5, rows + 0.5)
        around = ~shapely.contains_xy(shapely.Polygon(rings[0]).buffer(4), cols + 0.5, rows + 0.5)
        if mask.sum() > 20 and around.any():
            red = picture[..., 0].astype(int) - picture[..., 1]
            assert np.median(red[mask]) > np.median(red[around]) + 30
            seen += 1
    assert seen > 5


def first_picture(path, identity):
    text = path.read_text(encoding="utf-8")
    card = text[text.index(f'id="c-{identity}"') :]
    code = re.search(r'href="data:image/jpeg;base64,([^"]+)"', card).group(1)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    return (
        picture,
        int(re.search(r'<image width="(\d+)"', card).group(1)),
        re.search(r' d="([^"]+)"', card).group(1),
    )


def test_ground_without_elevation_says_so(page):
    _, reader = page
    missing = [text for _, text in reader.find("div", **{"class": "none"})]
    assert 0 < len(missing) < len(reader.find("article"))
    assert set(missing) == {"no elevation here"}


def test_coverage_and_counts_are_the_maps(inputs, page):
    _, reader = page
    table = [text for _, text in reader.find("td")]
    coverage = read_layers(inputs / "map.gpkg").coverage
    assert {"mapped", "no data: no optical data"} <= set(table)
    for area in coverage["area_m2"]:
        assert f"{area / 1e6:,.2f} km²" in table
    bars = [text for _, text in reader.find("title") if " to " in text]
    slumps = len(read_map(inputs / "map.gpkg"))
    assert sum(int(text.rpartition(": ")[2]) for text in bars) == 2 * slumps


def test_of_a_large_map_the_most_uncertain_have_pictures_and_all_are_on_the_map(inputs, tmp_path):
    facts = write_report(inputs / "map.gpkg", tmp_path / "page.html", limit=3)
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert (facts.shown, len(reader.find("article"))) == (3, 3)
    assert any(f"the 3 most uncertain of {facts.footprints}" in text for _, text in reader.find("span"))
    (dots,) = reader.find("path", **{"class": "dots"})
    assert dots[0]["d"].count("M") == facts.footprints - 3
    slumps = read_map(inputs / "map.gpkg")
    worst = slumps.assign(away=(slumps["score"] - 0.5).abs()).sort_values("away")["id"][:3]
    assert {attrs["data-id"] for attrs, _ in reader.find("article")} == set(worst)


def test_an_empty_map_has_a_page_too(inputs, tmp_path):
    layers = read_layers(inputs / "map.gpkg")
    write_layers(tmp_path / "e.gpkg", MapLayers(layers.footprints[:0], layers.coverage, layers.run_record))
    facts = write_report(tmp_path / "e.gpkg", tmp_path / "e.html")
    assert (facts.footprints, facts.shown) == (0, 0)
    assert "No slumps were found." in (tmp_path / "e.html").read_text(encoding="utf-8")


def hostile_map(folder):
    box = shapely.box(*grid((40, 60)).boundingbox)
    left, bottom, right, top = box.bounds
    coverage = [
        CoverageArea(box, "mapped", "", 1.0),
        CoverageArea(shapely.box(left, bottom, right, top), "failed", HOSTILE, 1.0),
    ]
    slump = footprint(box.buffer(-30), UTM, id=HOSTILE, modalities=(HOSTILE,))
    record = {
        "plan": {"model": {"name": HOSTILE, "version": HOSTILE}},
        "rtsmap_version": HOSTILE,
        "plan_sha256": HOSTILE,
    }
    write_map(folder / "map.gpkg", [slump], UTM, coverage, record)
    layers = read_layers(folder / "map.gpkg")
    reviewed = layers.footprints.assign(review=HOSTILE, review_comment=f"</textarea>{HOSTILE}")
    write_layers(folder / "map.gpkg", MapLayers(reviewed, layers.coverage, record), overwrite=True)
    scene = write_scene(folder / "<i>&amp;.tif", np.ones((40, 60), int))
    return folder / "map.gpkg", scene.path


def test_text_from_outside_stays_text(tmp_path):
    gpkg, scene = hostile_map(tmp_path)
    write_report(gpkg, tmp_path / "page.html", scene=scene)
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not reader.find("img")
    assert not reader.find("i", src="x")
    assert len(reader.find("script")) == 2
    assert not any(name.startswith("on") for _, attrs, _ in reader.elements for name in attrs)
    assert json.loads(reader.find("script", id="facts")[0][1])["plan_sha256"] == HOSTILE
    assert reader.find("article")[0][0]["data-id"] == HOSTILE
    assert reader.find("article")[0][0]["data-review"] == ""
    assert reader.find("textarea")[0][1] == f"</textarea>{HOSTILE}"


def test_what_cannot_be_is_refused(inputs, tmp_path):
    gpkg = inputs / "map.gpkg"
    with pytest.raises(OptionsError, match=r"written as \.html"):
        write_report(gpkg, tmp_path / "page.pdf")
    with pytest.raises(OptionsError, match=r"within 1\.\.5000"):
        write_report(gpkg, tmp_path / "page.html", limit=0)
    (tmp_path / "page.html").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        write_report(gpkg, tmp_path / "page.html")
    write_map(tmp_path / "other.gpkg", [], UTM, [], RECORD)
    with pytest.raises(InputError, match="name it with --scene"):
        write_report(tmp_path / "other.gpkg", tmp_path / "b.html")


def test_a_file_without_the_bands_of_the_map_is_doubted(inputs, tmp_path):
    with pytest.raises(InputError, match="the scene that the map was made from"):
        write_report(inputs / "map.gpkg", tmp_path / "p.html", scene=inputs / "dem.tif")


def test_another_scene_than_the_maps_is_told(inputs, tmp_path):
    other = write_scene(tmp_path / "other.tif", blob_labels((300, 400), seed=6, count=3))
    facts = write_report(inputs / "map.gpkg", tmp_path / "page.html", scene=other.path, limit=1)
    assert facts.notes == ("other.tif is not the very file that the map was made from",)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A map of two scenes of one ground, which overlap by half, and a third one in another zone."""
    folder = tmp_path_factory.mktemp("many")
    labels = blob_labels((120, 250), seed=7, count=25, radius=14)
    for name, left_px in (("west", 0), ("east", 50)):
        own = labels[:, left_px : left_px + 200]
        pixels = np.stack([np.where(own > 0, 200, 90), np.full_like(own, 100), np.full_like(own, 80)])
        box = grid(own.shape, left=LEFT + 4.0 * left_px)
        bands = ("red", "green", "blue")
        write_geotiff(folder / f"{name}.tif", pixels.astype(np.uint8), box, band_names=bands)
    box = GeoBox.from_bbox((LEFT, TOP - 480, LEFT + 800, TOP), "EPSG:32612", shape=(120, 200))
    write_geotiff(folder / "far.tif", pixels.astype(np.uint8), box, band_names=bands)
    items = read_scenes([folder / "west.tif", folder / "east.tif", folder / "far.tif"])
    options = PredictOptions(second_look=False)
    predict_scenes(InProcess(), items, out=folder / "many.gpkg", model=engine(), options=options)
    return folder


def test_a_map_of_many_scenes_has_a_picture_of_each(many, tmp_path):
    facts = write_report(many / "many.gpkg", tmp_path / "page.html")
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    slumps = standing(read_map(many / "many.gpkg"))
    assert facts.footprints == facts.shown == len(slumps) < len(read_map(many / "many.gpkg"))
    assert facts.notes == ()
    assert len(reader.find("figure", **{"class": "map"})) == 3
    titles = {"".join(text) for attrs, text in reader.find("h3") if "score" not in text}
    assert titles == set(slumps["scene_id"]) == {"west", "east", "far"}
    # where scenes overlap, a slump is drawn on both
    links = [attrs["href"] for attrs, _ in reader.find("a")]
    assert set(links) == {f"#c-{identity}" for identity in slumps["id"]}
    assert len(links) > len(slumps)
    scenes = [text for _, text in reader.find("span") if text.startswith("scene ")]
    assert sorted(scenes) == sorted(f"scene {name}" for name in slumps["scene_id"])
    away = (
        slumps.set_index("id").loc[[a["data-id"] for a, _ in reader.find("article")], "score"] - 0.5
    ).abs()
    assert away.is_monotonic_increasing


def red_under_outlines(page, identities):
    """How many of the slumps, which are red, were seen under their outlines; all of them must be."""
    seen = 0
    for identity in identities:
        if f'id="c-{identity}"' not in page.read_text(encoding="utf-8"):
            continue
        picture, _, path = first_picture(page, identity)
        ring = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.split("Z")[0]), float)
        inside = shapely.Polygon(ring).buffer(-2)
        rows, cols = np.mgrid[: picture.shape[0], : picture.shape[1]]
        mask = shapely.contains_xy(inside, cols + 0.5, rows + 0.5)
        if mask.sum() > 20:
            red = picture[..., 0].astype(int) - picture[..., 1]
            assert np.median(red[mask]) > 50
            seen += 1
    return seen


def test_slumps_of_many_scenes_lie_under_their_outlines(many, tmp_path):
    write_report(many / "many.gpkg", tmp_path / "page.html", limit=20)
    assert red_under_outlines(tmp_path / "page.html", read_map(many / "many.gpkg")["id"]) > 5


def test_slumps_of_scenes_with_one_id_lie_under_their_outlines(many, tmp_path):
    items = [replace(one, scene_id="P1") for one in read_scenes([many / "west.tif", many / "far.tif"])]
    options = PredictOptions(second_look=False)
    predict_scenes(InProcess(), items, out=tmp_path / "parts.gpkg", model=engine(), options=options)
    write_report(tmp_path / "parts.gpkg", tmp_path / "page.html")
    slumps = read_map(tmp_path / "parts.gpkg")
    assert set(slumps["scene_id"]) == {"P1"}
    for part in (
        slumps["centroid_lon"] < slumps["centroid_lon"].mean(),
        slumps["centroid_lon"] > slumps["centroid_lon"].mean(),
    ):
        assert red_under_outlines(tmp_path / "page.html", slumps["id"][part]) > 2


def test_a_scene_that_is_gone_takes_only_its_own_footprints_from_the_page(many, tmp_path, monkeypatch):
    (many / "far.tif").rename(many / "away.tif")
    try:
        facts = write_report(many / "many.gpkg", tmp_path / "page.html")
    finally:
        (many / "away.tif").rename(many / "far.tif")
    gone = int((standing(read_map(many / "many.gpkg"))["scene_id"] == "far").sum())
    assert gone > 0
    assert facts.notes == (
        f"left out: {gone} footprints of scenes that are not there",
        "far has no pictures: it is not where it was",
    )
    monkeypatch.setattr("rtsmap.runs.report.SCENES", 1)
    facts = write_report(many / "many.gpkg", tmp_path / "one.html")
    assert facts.shown == facts.footprints
    assert facts.notes == ("maps are of 1 scenes out of 3, those of the gallery first",)
    with pytest.raises(OptionsError, match=r"map of 3 scenes.* --scene names one"):
        write_report(many / "many.gpkg", tmp_path / "b.html", scene=many / "far.tif")


def test_a_review_of_many_scenes_comes_into_their_map(many, tmp_path):
    gpkg = tmp_path / "many.gpkg"
    shutil.copy(many / "many.gpkg", gpkg)
    identity = read_map(gpkg)["id"][0]
    review = {"format": "rtsmap-review-1", "plan_sha256": None}
    review["reviews"] = [{"id": identity, "review": "rejected", "comment": ""}]
    (tmp_path / "r.json").write_text(json.dumps(review))
    assert apply_review(gpkg, tmp_path / "r.json").rejected == 1


def test_columns_and_slumps_that_people_added_do_no_harm(inputs, tmp_path):
    layers = read_layers(inputs / "map.gpkg")
    coverage = layers.coverage.assign(inspector="Ж")
    write_layers(tmp_path / "map.gpkg", MapLayers(layers.footprints, coverage, layers.run_record))
    add_by_hand(tmp_path / "map.gpkg", layers.footprints.geometry[0])
    facts = write_report(tmp_path / "map.gpkg", tmp_path / "page.html")
    assert facts.footprints == len(layers.footprints)
    assert facts.notes == ("left out: 1 footprint without id or score, added by hand",)


def test_uncertainty_is_greatest_in_the_middle():
    assert uncertainty([0.5]) == pytest.approx([1.0])
    assert uncertainty([0.0, 1.0]) == pytest.approx([0, 0], abs=1e-9)
    assert uncertainty([0.2]) == pytest.approx(uncertainty([0.8]))


# In a browser


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, path):
    """A page that is offline, and what it complained about or asked for."""
    context = browser.new_context(
        offline=True, accept_downloads=True, viewport={"width": 1300, "height": 900}
    )
    tab, trouble = context.new_page(), []
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
    tab.goto(path.as_uri())
    return tab, trouble


def test_a_review_in_the_browser_comes_into_the_map(inputs, tmp_path, browser):
    gpkg = tmp_path / "map.gpkg"
    shutil.copy(inputs / "map.gpkg", gpkg)
    write_report(gpkg, tmp_path / "page.html", scene=inputs / "scène 1.tif", dem=inputs / "dem.tif")
    tab, trouble = opened(browser, tmp_path / "page.html")
    ids = tab.locator("article").evaluate_all("cards => cards.map(card => card.dataset.id)")
    assert tab.locator("#save").is_disabled()
    cards = [tab.locator("article").nth(number) for number in range(4)]
    cards[0].get_by_role("button", name="Accept").click()
    cards[1].get_by_role("button", name="Accept").click()
    cards[1].get_by_role("button", name="Reject").click()
    cards[1].get_by_placeholder("comment").fill(HOSTILE)
    cards[2].focus()
    tab.keyboard.press("r")
    cards[3].get_by_role("button", name="Accept").click()
    cards[3].get_by_role("button", name="Accept").click()  # once more takes it back
    assert tab.locator("#count").inner_text() == f"3 of {len(ids)} decided"
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save review").click()
    assert download.value.suggested_filename == "map_review.json"
    download.value.save_as(tmp_path / "map_review.json")
    tab.locator("#filter").select_option("rejected")
    assert tab.locator("article:visible").count() == 2
    assert trouble == []

    applied = apply_review(gpkg, tmp_path / "map_review.json")
    assert (applied.accepted, applied.rejected, applied.commented) == (1, 2, 1)
    slumps = read_map(gpkg).set_index("id")
    assert slumps.loc[ids[:3], "review"].tolist() == ["accepted", "rejected", "rejected"]
    assert slumps.loc[ids[1], "review_comment"] == HOSTILE
    assert apply_review(gpkg, tmp_path / "map_review.json") == applied

    write_report(gpkg, tmp_path / "again.html", scene=inputs / "scène 1.tif")
    tab, trouble = opened(browser, tmp_path / "again.html")
    assert tab.locator("#count").inner_text() == f"3 of {len(ids)} decided"
    assert tab.locator("article").nth(1).get_by_placeholder("comment").input_value() == HOSTILE
    tab.set_input_files("#load", tmp_path / "map_review.json")
    tab.get_by_text("4 of 4 taken over").wait_for()
    assert trouble == []


def test_hostile_text_does_nothing_in_a_browser(tmp_path, browser):
    gpkg, scene = hostile_map(tmp_path)
    write_report(gpkg, tmp_path / "page.html", scene=scene)
    tab, trouble = opened(browser, tmp_path / "page.html")
    assert tab.title() == "map.gpkg - rtsmap"
    assert tab.locator("img").count() == 0
    tab.get_by_role("button", name="Accept").click()
    assert tab.locator("#count").inner_text() == "1 of 1 decided"
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save review").click()
    download.value.save_as(tmp_path / "r.json")
    assert trouble == []
    assert apply_review(gpkg, tmp_path / "r.json").accepted == 1
