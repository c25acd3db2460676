"""When a scene was taken and what it is called, from its tags and its file name. Nothing is guessed silently.

Each finding says where it comes from. What the user says comes first, then tags that vendors write for this
purpose, then names of files as Maxar (DigitalGlobe), the Polar Geospatial Center (PGC), Planet, ESA, the USGS
and Earth Engine give them, then the date in a TIFF's header, which some programs set to the time of writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from pathlib import Path

from rtsmap.errors import OptionsError
from rtsmap.rasters.opening import local_path

_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_CATALOG_ID = "[0-9A-F]{16}"
_LANDSAT = r"L[A-Z]\d\d"
_GIVEN = "given"
FILE_NAME = "file name"
"""Where a scene's id comes from when nothing but the name of its file tells it."""

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "PGC",
        re.compile(rf"^(?:[A-Z]{{2}}\d\d)_(?P<time>\d{{14}})_(?P<id>{_CATALOG_ID})_", re.IGNORECASE),
    ),
    (
        "Maxar delivery",
        re.compile(
            rf"^(?P<id>(?P<vendor>\d\d(?:{'|'.join(_MONTHS)})\d{{8}})-[A-Z]\w{{3}}-\d+_\d+_P\d+)",
            re.IGNORECASE,
        ),
    ),
    ("Maxar open data", re.compile(r"^(?P<id>10[0-9A-F]{14})-(?:visual|pan|ms|pan_analytic)", re.IGNORECASE)),
    ("Sentinel-2", re.compile(r"^(?P<id>S2[A-D]_MSIL\w{2}_(?P<time>\d{8}T\d{6})_\w+)")),
    (
        "Sentinel-2 of Earth Engine",
        re.compile(r"^(?P<id>(?:S2_)?(?P<time>\d{8}T\d{6})_\d{8}T\d{6}_T\d\d[A-Z]{3})", re.IGNORECASE),
    ),
    ("Landsat", re.compile(rf"^(?P<id>{_LANDSAT}_L\w{{3}}_\d{{6}}_(?P<time>\d{{8}})_\d{{8}}_\d\d_\w\w)")),
    ("Landsat of Earth Engine", re.compile(rf"^(?P<id>(?:L\d_)?{_LANDSAT}_\d{{6}}_(?P<time>\d{{8}}))")),
    ("PlanetScope", re.compile(r"^(?P<id>(?P<time>\d{8}_\d{6})(?:_\d\d)?_[0-9a-f]{4})_", re.IGNORECASE)),
)
_DATE_TAGS = (
    "IMAGERY:ACQUISITIONDATETIME",
    "IMD:IMAGE_1.firstLineTime",
    "NITF_IDATIM",
    "ACQUISITION_DATETIME",
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATE",
    "ACQUISITIONDATE",
    "DATE_ACQUIRED",
)
_LATE_DATE_TAGS = ("TIFFTAG_DATETIME",)
_ID_TAGS = ("IMD:IMAGE_1.CatId", "IMD:CATALOGID", "SCENE_ID", "CATALOG_ID", "CATALOGID", "CATID")


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A scene's id and when it was taken (ISO 8601, UTC; None where nothing tells), each with its source.

    `other_dates` are (date, source) of what contradicts, without the date of writing.
    """

    scene_id: str
    scene_id_from: str
    acquired: str | None
    acquired_from: str | None
    other_dates: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, str | None]:
        """Plain data, as it stands in the run record."""
        return asdict(self)

    @property
    def note(self) -> str:
        """What was found and where, in a sentence."""
        named = f"scene id {self.scene_id} ({self.scene_id_from})"
        if self.acquired is None:
            return f"{named}; nothing tells when it was taken: say it with --date"
        others = "".join(f", but {when} by {source}" for when, source in self.other_dates)
        check = "; check which is right" if others else ""
        return f"{named}; taken {self.acquired} ({self.acquired_from}){others}{check}"


def acquisition_of(
    path: Path | str, tags: Mapping[str, str], *, taken: str | None = None, scene_id: str | None = None
) -> Acquisition:
    """What tells about a scene: `taken` and `scene_id` as given, else its tags, else its name.

    `tags` are those of `sources.read_tags`. OptionsError for a `taken` that is no date.
    """
    path = local_path(str(path)) or path
    name = Path(path).name
    dates = [] if taken is None else [(iso_date(taken), _GIVEN)]
    late = list(_dated_tags(tags, _LATE_DATE_TAGS))
    dates += [*_dated_tags(tags, _DATE_TAGS), *_dated_name(path), *late]
    ids = [(scene_id, _GIVEN)] if scene_id else []
    ids += [(tags[key], f"tag {key}") for key in _present(tags, _ID_TAGS)]
    ids += [(match["id"], f"file name, {kind}") for kind, match in _matches(name) if match["id"]]
    ids.append((Path(name).stem, FILE_NAME))
    acquired, acquired_from = dates[0] if dates else (None, None)
    sure = dates[: len(dates) - len(late)]
    others = tuple(found for found in sure if acquired and _differ(found[0], acquired))
    return Acquisition(*ids[0], acquired, acquired_from, others)


def iso_date(text: str) -> str:
    """A date, or date and time, that the user gave; OptionsError when it is none."""
    try:
        if len(text) == len("2020-07-05"):
            return date.fromisoformat(text).isoformat()
        return _utc(datetime.fromisoformat(text.replace("Z", "+00:00")))
    except ValueError:
        raise OptionsError(
            f"date '{text}' cannot be read; wanted it as in 2020-07-05 or 2020-07-05T22:43:06Z"
        ) from None


def _differ(one: str, other: str) -> bool:
    """Whether two dates are more than a day apart, which local time and UTC may be."""
    return abs((date.fromisoformat(one[:10]) - date.fromisoformat(other[:10])).days) > 1


def strip_date(path: Path | str) -> str | None:
    """The date in the name of an ArcticDEM strip, `SETSM_s2s041_WV02_20200705_...`."""
    match = re.match(r"SETSM_(?:s2s\d+_)?[A-Z0-9]{4}_(\d{8})_", Path(str(path)).name, re.IGNORECASE)
    return _parse(match[1]) if match else None


def _present(tags: Mapping[str, str], keys: tuple[str, ...]) -> Iterator[str]:
    """Those of the keys that tags have, whatever the case, and with something in them."""
    known = {key.lower(): key for key in tags}
    for key in keys:
        if tags.get(known.get(key.lower(), ""), "").strip(' "'):
            yield known[key.lower()]


def _dated_tags(tags: Mapping[str, str], keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key in _present(tags, keys):
        if (found := _parse(tags[key])) is not None:
            late = ", perhaps that of writing" if key in _LATE_DATE_TAGS else ""
            yield found, f"tag {key}{late}"


def _matches(name: str) -> Iterator[tuple[str, re.Match[str]]]:
    for kind, pattern in _NAMES:
        if match := pattern.match(name):
            yield kind, match


def _dated_name(path: Path | str) -> Iterator[tuple[str, str]]:
    parts = str(path).replace("\\", "/").split("/")
    for kind, match in _matches(parts[-1]):
        found = match.groupdict()
        text = _of_vendor(found["vendor"]) if "vendor" in found else found.get("time")
        if text and (when := _parse(text)) is not None:
            yield when, f"file name, {kind}"
        elif kind == "Maxar open data" and len(parts) > 1 and (when := _parse(parts[-2])) is not None:
            yield when, f"folder name, {kind}"


def _of_vendor(text: str) -> str:
    """`13APR26224306` as digits."""
    return f"20{text[:2]}{_MONTHS.index(text[2:5].upper()) + 1:02d}{text[5:]}"


def _parse(text: str) -> str | None:
    """ISO 8601 of the ways in which tags and names write dates; None for what cannot be one."""
    cleaned = text.strip(' ";')
    digits = re.sub(r"[-:T_ /]", "", re.sub(r"(\.\d+)?(Z|\+00:?00)?$", "", cleaned))
    if not re.fullmatch(r"\d{8}(\d{6})?", digits):
        return None
    year, month, day = int(digits[:4]), int(digits[4:6]), int(digits[6:8])
    try:
        if not 1970 <= year <= datetime.now(timezone.utc).year + 1:
            return None
        if len(digits) == 8:
            return date(year, month, day).isoformat()
        hour, minute, second = int(digits[8:10]), int(digits[10:12]), int(digits[12:14])
        return _utc(datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc))
    except ValueError:
        return None


def _utc(when: datetime) -> str:
    known = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return known.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
