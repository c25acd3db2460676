"""The HTML of a report: text, pictures and drawings in one file. All text from outside is escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rtsmap.instances.coverage import STATUSES
from rtsmap.vectors.geopackage import model_of
from rtsmap.vectors.qgis_style import SCORE_COLOURS, SCORE_LIMITS
from rtsmap.vectors.reviews import FORMAT
from rtsmap.vectors.verdicts import ACCEPTED, REJECTED

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the page may load: nothing."""

_SCORE_EDGES = np.linspace(0, 1, 21)
_PLOT = (300, 130)
_SEPARATOR = " · "
_FACTS = (
    ("area_m2", "area", "{:,.0f} m²"),
    ("uncertainty", "uncertainty", "{:.2f} bit"),
    ("elevation_range_m", "elevation range", "{:.1f} m"),
    ("slope_deg", "slope", "{:.1f}°"),
    ("aspect_deg", "aspect", "{:.0f}°"),
    ("relief_m", "relief", "{:+.1f} m"),
    ("valid_share", "valid", "{:.0%}"),
)


@dataclass(frozen=True, slots=True)
class Outline:
    """A footprint on the overview, in its pixels."""

    id: str
    score: float
    shape: BaseGeometry


@dataclass(frozen=True, slots=True)
class Overview:
    """A scene as a picture, its relief, and what is drawn on it, in its pixels.

    `dots` are footprints that are not in the gallery, `unseen` (status, area) what was not mapped.
    """

    name: str
    optical: str
    relief: str | None
    width: int
    height: int
    pixel_m: float
    outlines: tuple[Outline, ...]
    dots: tuple[BaseGeometry, ...]
    unseen: tuple[tuple[str, BaseGeometry], ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A footprint of the gallery: its attributes, pictures as data addresses, outline in their pixels.

    `scene` is told on maps of many.
    """

    row: Mapping[str, Any]
    scene: str | None
    optical: str
    relief: str | None
    width: int
    height: int
    pixel_m: float
    outline: BaseGeometry


@dataclass(frozen=True, slots=True)
class Page:
    """Everything on the page; `scores` and `areas_m2` are of all footprints, `coverage` its columns.

    `overviews` are one or more, one a scene.
    """

    name: str
    record: Mapping[str, Any]
    scene: str
    overviews: tuple[Overview, ...]
    cards: tuple[Card, ...]
    scores: npt.NDArray[np.float64]
    areas_m2: npt.NDArray[np.float64]
    coverage: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]


def page_html(page: Page) -> str:
    """The whole document."""
    script, style = (
        resources.files("rtsmap.runs").joinpath(f"report.{kind}").read_text("utf-8") for kind in ("js", "css")
    )
    facts = {"format": FORMAT, "map": page.name, "plan_sha256": page.record.get("plan_sha256")}
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(page.name)} - rtsmap</title>\n<style>\n{style}</style>\n</head>\n<body>",
            *_header(page),
            *_maps(page),
            *_gallery(page),
            f'<script type="application/json" id="facts">{_json(facts)}</script>',
            f"<script>\n{script}</script>\n</body>\n</html>\n",
        )
    )


def _json(data: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _header(page: Page) -> Iterator[str]:
    model = model_of(page.record)
    total_km2 = float(page.areas_m2.sum()) / 1e6
    yield f"<header><h1>{escape(page.name)}</h1>"
    told = [
        f"<b>{len(page.scores):,}</b> slumps, {total_km2:.3g} km²",
        escape(page.scene),
        f"model {escape(str(model['name']))} {escape(str(model.get('version', '')))}"
        if "name" in model
        else "",
        f"rtsmap {escape(str(page.record.get('rtsmap_version', '')))}",
        _told_time(str(page.record.get("finished_utc", ""))),
    ]
    yield f"<p>{' · '.join(part for part in told if part)}</p>"
    yield from (f'<p class="note">{escape(note)}</p>' for note in page.notes)
    yield "</header>"


def _told_time(finished_utc: str) -> str:
    return escape(f"{finished_utc[:16].replace('T', ' ')} UTC") if finished_utc else ""


def _maps(page: Page) -> Iterator[str]:
    first, *others = page.overviews
    yield '<section class="top">'
    yield from _map(first, page)
    yield '<div class="figures">'
    ticks, told = _SCORE_EDGES[::5], "{:.2f}".format
    yield from _histogram("Score", page.scores, _SCORE_EDGES, ticks, told, colour=_colour)
    yield from _area_histogram(page.areas_m2)
    yield from _coverage_table(page)
    yield "</div></section>"
    if others:
        yield '<section class="others">'
        for overview in others:
            yield from _map(overview, page)
        yield "</section>"


def _map(overview: Overview, page: Page) -> Iterator[str]:
    yield '<figure class="map">'
    if len(page.overviews) > 1:
        yield f"<h3>{escape(overview.name)}</h3>"
    yield _svg(overview.width, overview.height, "Map of the footprints")
    yield from _pictures(overview.optical, overview.relief, overview.width, overview.height)
    for status, shape in overview.unseen:
        yield f'<path class="unseen {_css(status)}" d="{_path(shape)}"><title>{escape(status)}</title></path>'
    if overview.dots:
        dots = "".join(f"M{dot.x:.1f} {dot.y:.1f}h0" for dot in overview.dots)
        yield f'<path class="dots" d="{dots}"/>'
    for outline in overview.outlines:
        title = f"score {outline.score:.2f}"
        yield (
            f'<a href="#c-{escape(outline.id)}"><path class="slump" stroke="{_colour(outline.score)}" '
            f'd="{_path(outline.shape)}"><title>{title}</title></path></a>'
        )
    yield _scale_bar(overview)
    yield "</svg>"
    if overview.relief:
        yield '<label class="switch"><input type="checkbox"> relief</label>'
    yield (
        "<figcaption>Outlines have the colours of the score's bars. Click one to see the slump in the "
        "gallery.</figcaption></figure>"
    )


def _pictures(optical: str, relief: str | None, width: int, height: int) -> Iterator[str]:
    size = f'width="{width}" height="{height}"'
    yield f'<image {size} href="{optical}"/>'
    if relief:
        yield f'<image class="relief" {size} href="{relief}"/>'


def _svg(width: int, height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'


def _scale_bar(overview: Overview) -> str:
    metres = _round_length(overview.width * overview.pixel_m / 4)
    length, unit = metres / overview.pixel_m, overview.width / 100
    told = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    x, y = 2 * unit, overview.height - 2 * unit
    return (
        f'<g class="scale">'
        f'<path class="halo" stroke-width="{unit * 0.9:.1f}" d="M{x:.1f} {y:.1f}h{length:.1f}"/>'
        f'<path stroke-width="{unit * 0.5:.1f}" d="M{x:.1f} {y:.1f}h{length:.1f}"/>'
        f'<text x="{x:.1f}" y="{y - unit:.1f}" font-size="{unit * 2.4:.1f}">{told}</text></g>'
    )


def _round_length(metres: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(metres))
    return max(step * power for step in (1, 2, 5) if step * power <= metres)


def _area_histogram(areas_m2: npt.NDArray[np.float64]) -> Iterator[str]:
    logs = np.log10(areas_m2) if len(areas_m2) else np.array([3.0])
    low, high = math.floor(logs.min()), math.ceil(logs.max() + 1e-9)
    high = max(high, low + 2)
    edges = np.linspace(low, high, 1 + max(12, 6 * (high - low)))
    ticks = np.arange(low, high + 1, dtype=float)
    yield from _histogram("Area (m²)", logs[: len(areas_m2)], edges, ticks, lambda log: f"{10**log:,.0f}")


def _histogram(
    title: str,
    values: npt.NDArray[np.float64],
    edges: npt.NDArray[Any],
    ticks: npt.NDArray[Any],
    told: Callable[[float], str],
    *,
    colour: Callable[[float], str] | None = None,
) -> Iterator[str]:
    """Counts of values between edges; `colour` paints a bar by the middle of what it counts."""
    counts, _ = np.histogram(values, edges)
    width, height = _PLOT
    most, step = max(1, int(counts.max())), width / len(counts)
    frame = f'viewBox="-26 -14 {width + 60} {height + 34}"'
    yield f'<figure><svg class="plot" {frame} role="img" aria-label="{title}">'
    yield f'<text class="title" x="0" y="-4">{title}</text>'
    for number, count in enumerate(counts):
        if count:
            tall = height * count / most
            label = f"{told(edges[number])} to {told(edges[number + 1])}: {count}"
            place = f'x="{number * step:.1f}" y="{height - tall:.1f}"'
            size = f'width="{step * 0.92:.1f}" height="{tall:.1f}"'
            middle = float(edges[number] + edges[number + 1]) / 2
            paint = "" if colour is None else f' style="fill:{colour(middle)}"'
            yield f"<rect {place} {size}{paint}><title>{label}</title></rect>"
    yield f'<path class="axis" d="M0 {height}h{width}"/><text class="count" x="-4" y="8">{most}</text>'
    for tick in ticks:
        x = width * (tick - edges[0]) / (edges[-1] - edges[0])
        yield f'<text class="tick" x="{x:.1f}" y="{height + 14}">{told(tick)}</text>'
    yield "</svg></figure>"


def _coverage_table(page: Page) -> Iterator[str]:
    whole = sum(area for *_, area in page.coverage) or 1.0
    yield "<table><caption>Coverage</caption>"
    for status, reason, area in sorted(
        page.coverage, key=lambda row: STATUSES.index(row[0]) if row[0] in STATUSES else 9
    ):
        told = f"{status}: {reason}" if reason else status
        bar = f'<span class="bar {_css(status)}" style="width:{100 * area / whole:.1f}%"></span>'
        cells = escape(told), f"{area / 1e6:,.2f} km²", f"{area / whole:.1%}", bar
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _gallery(page: Page) -> Iterator[str]:
    total, shown = len(page.scores), len(page.cards)
    which = "all" if shown == total else f"the {shown:,} most uncertain of {total:,}"
    yield '<section id="review"><div class="bar-top">'
    yield f"<h2>Footprints</h2><span>{which}, most uncertain first</span>"
    yield (
        '<label>show <select id="filter"><option value="all">all</option>'
        '<option value="open">undecided</option><option value="accepted">accepted</option>'
        '<option value="rejected">rejected</option></select></label>'
    )
    yield '<span id="count"></span><button id="save" disabled>Save review</button>'
    yield '<label class="load">Load review<input type="file" id="load" accept=".json"></label>'
    yield '<span id="told" role="status"></span></div>'
    yield '<noscript><p class="note">A review needs JavaScript; all else is here without.</p></noscript>'
    if not page.cards:
        yield '<p class="note">No slumps were found.</p>'
    yield '<div class="cards">'
    for number, card in enumerate(page.cards, start=1):
        yield from _card(number, card)
    yield "</div></section>"


def _card(number: int, card: Card) -> Iterator[str]:
    row = card.row
    identity, score = escape(str(row["id"])), float(row["score"])
    given, comment = _text(row.get("review")), _text(row.get("review_comment"))
    given = given if given in (ACCEPTED, REJECTED) else ""
    yield f'<article id="c-{identity}" data-id="{identity}" data-review="{escape(given)}" tabindex="0">'
    yield f'<h3><i style="background:{_colour(score)}"></i>{number}. score {score:.2f}</h3><div class="pair">'
    for title, picture in (("imagery", card.optical), ("shaded relief", card.relief)):
        if picture is None:
            yield '<div class="none">no elevation here</div>'
            continue
        yield f"{_svg(card.width, card.height, title)}<title>{title}</title>"
        yield f'<image width="{card.width}" height="{card.height}" href="{picture}"/>'
        path = _path(card.outline)
        yield f'<path class="halo" d="{path}"/><path class="edge" d="{path}"/></svg>'
    yield f'</div><p class="facts">{_SEPARATOR.join(f"<span>{fact}</span>" for fact in _told(row, card))}</p>'
    place = f"{row['centroid_lat']:.5f}, {row['centroid_lon']:.5f}"
    yield f'<p class="where">{place} <span title="id">{identity}</span></p><div class="buttons">'
    for verdict, told in (("accepted", "Accept"), ("rejected", "Reject")):
        yield f'<button data-verdict="{verdict}" aria-pressed="false">{told}</button>'
    yield f'<textarea rows="1" maxlength="10000" placeholder="comment">{escape(comment)}</textarea>'
    yield "</div></article>"


def _told(row: Mapping[str, Any], card: Card) -> Iterator[str]:
    for column, name, form in _FACTS:
        value = row.get(column)
        if value is not None and math.isfinite(value):
            yield f"{name} {form.format(value)}"
    if row.get("seam_unconfirmed"):
        yield "<b>seen from one tile only</b>"
    if row.get("modalities"):
        yield escape(str(row["modalities"]).replace(",", " + "))
    yield f"picture {card.width * card.pixel_m:,.0f} m wide"
    if card.scene is not None:
        yield f"scene {escape(card.scene)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _colour(score: float) -> str:
    number = int(np.searchsorted(SCORE_LIMITS[1:-1], score, side="right"))
    return f"rgb({SCORE_COLOURS[number]})"


def _css(status: str) -> str:
    """A class name for a status; those unknown here look alike."""
    return status.replace(" ", "-") if status in STATUSES else "other"


def _path(shape: BaseGeometry) -> str:
    rings = shapely.get_rings(shapely.get_parts(shape))
    return "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shapely.get_coordinates(ring)[:-1]) + "Z"
        for ring in rings
    )
