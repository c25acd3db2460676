"""Model bundles: a folder of data that says what a network is, wants and was measured to do.

    models/<name>/
      card.toml              input bands, resolution, chip size, thresholds, licence, scores
      model.json             the numbers from which the network is built (flat, plain data)
      weights.safetensors    the weights; card.toml holds their sha256
      README.md              the same for people

Nothing in a bundle is ever executed. Bundles are found inside the installed package
(`rtsmap/bundles`), in `models/` of a checkout, or at a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rtsmap.errors import BandError, CardError, WeightsError
from rtsmap.rasters.bands import InputSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

DEFAULT_BUNDLE = "rts-starter"
"""The bundle that is used when none is named."""

CARD, NETWORK, WEIGHTS, README = "card.toml", "model.json", "weights.safetensors", "README.md"
_CALIBRATION = "## Calibration"

_MAX_TEXT_BYTES = 1 << 20
_UNSAFE_SUFFIXES = frozenset(
    (".pkl", ".pickle", ".pth", ".pt", ".pyth", ".ckpt", ".joblib", ".py", ".pyc", ".so")
)
_MAX_WEIGHTS_BYTES = 8 << 30
_MAX_HEADER_BYTES = 16 << 20
"""A thousand times that of a large network; JSON takes up to thirty times its bytes in memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CALLED = re.compile(r"[\w.]*\w \w[\w.]*")
"""The module and the name that a pickle calls, as pickletools gives them."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Score:
    """A measured figure: `name` (what), `value`, `data` (on what), and the `command` that gave it."""

    name: str
    value: float
    data: str
    command: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A bundle that was read and checked, apart from the weights' bytes (see `verify`).

    `chip_px` and `overlap_px` are pixels of `spec.resolution_m`. `score_threshold` is 0..1,
    `mask_threshold` 1..255 on the uint8 probability scale. `parameters` counts all branches.
    `sha256` is that of the weights. `temperature` divides the logits of the network's scores before anybody
    sees them, and `score_threshold` is compared with the result; 1 leaves scores as the network gives them.
    Raises CardError for values that cannot hold together.
    """

    name: str
    version: str
    description: str
    licence: str
    training_data: str
    parameters: int
    classes: tuple[str, ...]
    spec: InputSpec
    chip_px: int
    overlap_px: int
    score_threshold: float
    mask_threshold: int
    network: Mapping[str, Any]
    network_sha256: str
    weights: Path
    weights_bytes: int
    sha256: str
    scores: tuple[Score, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            f"name '{self.name}' may hold letters, digits and . _ - only": _NAME.fullmatch(self.name),
            "version must not be empty": self.version,
            "licence must say who may use the weights for what": self.licence.strip(),
            "classes must name at least one class": self.classes,
            f"chip_px={self.chip_px}: wanted 16..4096": 16 <= self.chip_px <= 4096,
            f"overlap_px={self.overlap_px}: wanted between 0 and half of chip_px={self.chip_px}": (
                0 <= self.overlap_px <= self.chip_px // 2
            ),
            f"score threshold {self.score_threshold}: wanted 0..1": 0 <= self.score_threshold <= 1,
            f"mask threshold {self.mask_threshold}: wanted 1..255": 1 <= self.mask_threshold <= 255,
            f"temperature {self.temperature}: wanted 0.01..100": 0.01 <= self.temperature <= 100,
            f"parameters={self.parameters}: wanted a positive count": self.parameters > 0,
            "weights sha256: wanted 64 hexadecimal digits": _SHA256.fullmatch(self.sha256),
            "network sha256: wanted 64 hexadecimal digits": _SHA256.fullmatch(self.network_sha256),
            "a score needs the command that gave it": all(s.command.strip() for s in self.scores),
        }
        for sentence, holds in checks.items():
            if not holds:
                raise CardError(f"model card '{self.name}': {sentence}")

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.weights.parent

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the network's answers, as plain data: name, version, hashes, input.

        Thresholds and temperature only decide what is made of the answers.
        """
        return {
            "name": self.name,
            "version": self.version,
            "weights_sha256": self.sha256,
            "network_sha256": self.network_sha256,
            "input": self.spec.to_dict(),
        }


# Finding


def bundle_roots() -> tuple[Path, ...]:
    """Folders that hold shipped bundles: the installed package's, and a checkout's `models/`."""
    package = Path(__file__).resolve().parent
    roots = [package / "bundles"]
    if (package.parent / "pyproject.toml").is_file():
        roots.append(package.parent / "models")
    return tuple(root for root in roots if root.is_dir())


def list_bundles() -> list[str]:
    """Names of the shipped bundles, sorted."""
    return sorted({card.parent.name for root in bundle_roots() for card in root.glob(f"*/{CARD}")})


def find_bundle(name_or_path: str | Path | None = None) -> Path:
    """Folder of a bundle: a shipped one by name, else a path; without an argument the default one."""
    wanted = DEFAULT_BUNDLE if name_or_path is None else name_or_path
    if isinstance(wanted, str) and _NAME.fullmatch(wanted):
        for root in bundle_roots():
            if (root / wanted / CARD).is_file():
                return root / wanted
    folder = Path(wanted)
    with suppress(RuntimeError):  # ~ of somebody who is not known here
        folder = folder.expanduser()
    folder = folder.parent if folder.name == CARD else folder
    if (folder / CARD).is_file():
        return folder
    shipped = ", ".join(list_bundles()) or "none"
    raise CardError(
        f"no model bundle '{wanted}': there is no {CARD} in that folder, and the shipped bundles are: "
        f"{shipped}. Give the name of a shipped bundle or the path of a folder with {CARD}"
    )


# Reading


def read_card(folder: Path | str) -> ModelCard:
    """Read card.toml and model.json; raises CardError for missing, unknown or impossible fields."""
    folder = Path(folder)
    table = _Table(_parse_toml(_inside(folder, CARD, CardError)), f"{folder / CARD}")
    files, tiles = table.sub("files"), table.sub("tiles")
    thresholds, spec = table.sub("thresholds"), table.take("input", dict)
    network_path = _inside(folder, files.take("network", str), CardError)
    card_fields: dict[str, Any] = {
        **{key: table.take(key, str) for key in ("name", "version", "description", "licence")},
        "training_data": table.take("training_data", str),
        "parameters": table.take("parameters", int),
        "classes": tuple(table.strings("classes")),
        "chip_px": tiles.take("chip_px", int),
        "overlap_px": tiles.take("overlap_px", int),
        "score_threshold": float(thresholds.take("score", float)),
        "mask_threshold": thresholds.take("mask", int),
        "network": _parse_network(network_path),
        "network_sha256": files.take("network_sha256", str),
        "weights": _inside(folder, files.take("weights", str), WeightsError, must_exist=False),
        "weights_bytes": files.take("weights_bytes", int),
        "sha256": files.take("weights_sha256", str),
        "scores": tuple(_read_score(entry) for entry in table.subs("scores")),
    }
    if "temperature" in thresholds.left:
        card_fields["temperature"] = float(thresholds.take("temperature", float))
    for section in (table, files, tiles, thresholds):
        section.done()
    card = ModelCard(spec=_read_spec(spec, folder), **card_fields)
    _check_hash(network_path, card.network_sha256, CardError)
    return card


def verify(card: ModelCard) -> None:
    """Check the weights' size, sha256 and header against the card; raises WeightsError."""
    path = _inside(card.folder, card.weights.name, WeightsError)
    size = path.stat().st_size
    if size != card.weights_bytes or size > _MAX_WEIGHTS_BYTES:
        raise WeightsError(
            f"{path}: {size} bytes, but the card says {card.weights_bytes}: the file is incomplete or was "
            "replaced. Fetch the bundle again"
        )
    _check_hash(path, card.sha256, WeightsError)
    _check_safetensors(path)


def verify_contents(card: ModelCard) -> None:
    """See that a bundle holds data only; raises CardError that names a pickle or code lying in it.

    rtsmap opens neither, but other programs may, and whoever hands a bundle on answers for it.
    """
    for path in sorted(card.folder.rglob("*")):
        # the weights are known by their own check, and the length at their start may look like anything
        if path == card.weights or not path.is_file():
            continue
        if path.suffix.lower() in _UNSAFE_SUFFIXES or _is_pickle(path):
            raise CardError(
                f"{path}: a pickle or code is no part of a model, which is a card, numbers and weights "
                f"({CARD}, {NETWORK}, {WEIGHTS}); remove it, and ask who put it there"
            )


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, of any protocol, or an archive, as torch's are.

    Nothing is unpickled: the operations that a pickle would be are only read.
    """
    with path.open("rb") as stream:
        start = stream.read(4)
        if start == b"PK\x03\x04" or (
            start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
        ):
            return True
        stream.seek(0)
        try:
            named = [
                (operation.name, str(value))
                for operation, value, _ in pickletools.genops(stream)
                if operation.name in {"GLOBAL", "INST", "STACK_GLOBAL"}
            ]
        except (ValueError, OverflowError):
            return False
    # "Notes." happens to be operations, and so may be lines of a text; what they call is then no name
    return any(name == "STACK_GLOBAL" or _CALLED.fullmatch(value) for name, value in named)


def load_bundle(name_or_path: str | Path | None = None) -> ModelCard:
    """Find, read and verify a bundle."""
    card = read_card(find_bundle(name_or_path))
    verify(card)
    return card


class _Table:
    """A TOML table whose keys are taken out one by one, so that what is left over is unknown."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.left, self.where = dict(data), where

    def take(self, key: str, kind: type) -> Any:
        if key not in self.left:
            raise CardError(f"{self.where}: '{key}' is missing")
        value = self.left.pop(key)
        kinds = (int, float) if kind is float else (kind,)
        # bool is an int in Python, but `chip_px = true` is a mistake
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise CardError(f"{self.where}: '{key}' must be {kind.__name__}, got {value!r}")
        return value

    def sub(self, key: str) -> _Table:
        return _Table(self.take(key, dict), f"{self.where} [{key}]")

    def subs(self, key: str) -> Iterator[_Table]:
        entries = self.take(key, list) if key in self.left else []
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise CardError(f"{self.where}: '{key}' must be a list of tables")
            yield _Table(entry, f"{self.where} [[{key}]] {i + 1}")

    def strings(self, key: str) -> list[str]:
        values: list[str] = self.take(key, list)
        if not all(isinstance(value, str) for value in values):
            raise CardError(f"{self.where}: '{key}' must be a list of strings, got {values!r}")
        return values

    def done(self) -> None:
        if self.left:
            raise CardError(f"{self.where}: unknown keys: {', '.join(sorted(self.left))}")


def read_scores(path: Path) -> tuple[Score, ...]:
    """Scores from a JSON list of objects with name, value, data and command. Raises CardError."""
    try:
        listed = json.loads(_read_text(path))
    except (ValueError, RecursionError) as exc:
        raise CardError(f"{path} is not JSON: {exc}") from exc
    except OSError as exc:
        raise CardError(f"{path}: cannot be read ({exc})") from exc
    return tuple(_read_score(entry) for entry in _Table({"scores": listed}, str(path)).subs("scores"))


def _read_score(entry: _Table) -> Score:
    texts = {key: entry.take(key, str) for key in ("name", "data", "command")}
    score = Score(value=float(entry.take("value", float)), **texts)
    entry.done()
    return score


def _read_spec(data: Mapping[str, Any], folder: Path) -> InputSpec:
    try:
        return InputSpec.from_dict(data)
    except BandError as exc:
        raise CardError(f"{folder / CARD} [input]: {exc}") from exc


def _parse_toml(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = tomllib.loads(_read_text(path))
    except (ValueError, RecursionError) as exc:
        raise CardError(f"{path} is not TOML: {exc}") from exc
    return data


def _parse_network(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path), object_pairs_hook=_unique_keys)
    except (json.JSONDecodeError, RecursionError, ValueError) as exc:
        raise CardError(f"{path} is not plain JSON: {exc}") from exc
    if not isinstance(data, dict) or any(isinstance(value, dict) for value in data.values()):
        raise CardError(f"{path}: wanted one flat object of numbers, strings and lists")
    return data


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key is given twice")
    return data


def _read_text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise CardError(f"{path}: {path.stat().st_size} bytes is too much for a card (at most 1 MiB)")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CardError(f"{path} cannot be read: {exc}") from exc


def _inside(
    folder: Path, name: str, error: type[CardError | WeightsError], *, must_exist: bool = True
) -> Path:
    """Path of a bundle's own file: a plain name, a regular file, not a link that leads elsewhere."""
    path = folder / name
    if name in {"", ".", ".."} or Path(name).name != name or "\\" in name:
        raise error(f"{folder}: '{name}' must be the plain name of a file inside the bundle")
    if path.is_symlink():
        raise error(f"{path} is a symbolic link: a bundle holds its own files")
    if must_exist and not path.is_file():
        raise error(f"{path} is missing: a bundle needs {CARD}, {NETWORK} and {WEIGHTS}")
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_hash(path: Path, wanted: str, error: type[CardError | WeightsError]) -> None:
    got = _sha256(path)
    if got != wanted:
        raise error(
            f"{path}: sha256 is {got[:12]}..., the card says {wanted[:12]}...: the file was altered or "
            "belongs to another version. Fetch the bundle again"
        )


def _check_safetensors(path: Path) -> None:
    """The header must be JSON that fits the file: a pickle in disguise stops here."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise WeightsError(f"{path} is not a safetensors file")
        try:
            header = json.loads(stream.read(length))
            ends = (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
            end = max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as exc:
            raise WeightsError(f"{path} is not a safetensors file: its header is broken") from exc
    if end != size - 8 - length:
        raise WeightsError(f"{path}: the header does not fit the file's size, it is damaged")


# Writing


def write_bundle(
    folder: Path | str,
    *,
    weights: Path | str,
    network: Mapping[str, Any],
    spec: InputSpec,
    name: str,
    version: str,
    description: str,
    licence: str,
    training_data: str,
    parameters: int,
    classes: Sequence[str] = ("rts",),
    chip_px: int,
    overlap_px: int,
    score_threshold: float = 0.5,
    mask_threshold: int = 128,
    scores: Sequence[Score] = (),
    readme: str | None = None,
    overwrite: bool = False,
) -> ModelCard:
    """Write a complete bundle from a safetensors file and the facts about it; read it back, verified.

    The folder appears in one piece. An existing bundle is replaced only with `overwrite`.
    """
    folder, weights = Path(folder), Path(weights)
    if folder.exists() and not overwrite:
        raise CardError(f"{folder} exists; choose another folder or allow overwriting")
    if folder.exists() and not (folder / CARD).is_file():
        raise CardError(
            f"{folder} is no bundle (it has no {CARD}), so it is not replaced; choose another folder"
        )
    _check_safetensors(weights)
    network_text = json.dumps(dict(network), indent=1, sort_keys=True, allow_nan=False) + "\n"
    card = ModelCard(
        name=name,
        version=version,
        description=description,
        licence=licence,
        training_data=training_data,
        parameters=parameters,
        classes=tuple(classes),
        spec=spec,
        chip_px=chip_px,
        overlap_px=overlap_px,
        score_threshold=float(score_threshold),
        mask_threshold=mask_threshold,
        network=dict(network),
        network_sha256=hashlib.sha256(network_text.encode()).hexdigest(),
        weights=folder / WEIGHTS,
        weights_bytes=weights.stat().st_size,
        sha256=_sha256(weights),
        scores=tuple(scores),
    )
    staging = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        (staging / CARD).write_text(_card_toml(card), encoding="utf-8")
        (staging / NETWORK).write_text(network_text, encoding="utf-8")
        (staging / README).write_text(readme or _card_readme(card), encoding="utf-8")
        shutil.copyfile(weights, staging / WEIGHTS)
        verify(read_card(staging))
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_card(folder)


def _put_in_place(staging: Path, folder: Path) -> None:
    """Move a bundle to where another one may be, which comes back where that fails."""
    if not folder.exists():
        staging.rename(folder)
        return
    aside = staging.with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    try:
        staging.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_calibrated(
    card: ModelCard, folder: Path, *, score_threshold: float, temperature: float, scores: Sequence[Score] = ()
) -> ModelCard:
    """Write a bundle's threshold and temperature, and add scores: in place, or to a copy in a new folder.

    Scores that are in the card already were measured with other numbers and say so from then on. A shipped
    bundle is never changed. Raises CardError for a folder that exists and is not the bundle's own.
    """
    old = tuple(
        score
        if "before calibration" in score.data
        else replace(score, data=f"{score.data}; before calibration")
        for score in card.scores
    )
    changed = replace(
        card,
        score_threshold=float(score_threshold),
        temperature=float(temperature),
        scores=(*old, *scores),
    )
    if (card.folder / NETWORK, card.folder / WEIGHTS) != (_network_path(card), card.weights):
        raise CardError(
            f"{card.folder}: only bundles with files named {NETWORK} and {WEIGHTS} can be rewritten"
        )
    in_place = folder.resolve() == card.folder.resolve()
    if in_place and is_shipped(card):
        raise CardError(f"{folder} is a shipped bundle, which stays as it is; name another folder")
    if folder.exists() and not in_place:
        raise CardError(f"{folder} exists; choose another folder")
    verify(card)
    staging = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        (staging / CARD).write_text(_card_toml(changed), encoding="utf-8")
        (staging / README).write_text(_calibrated_readme(card, changed, scores), encoding="utf-8")
        if in_place:
            (staging / README).replace(folder / README)
            (staging / CARD).replace(folder / CARD)
        else:
            for name in (NETWORK, WEIGHTS):
                shutil.copyfile(card.folder / name, staging / name)
            verify(read_card(staging))
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_card(folder)


def is_shipped(card: ModelCard) -> bool:
    """True for a bundle that came with rtsmap, and false for the user's own."""
    return card.folder.resolve().parent in {root.resolve() for root in bundle_roots()}


def _network_path(card: ModelCard) -> Path:
    files = _parse_toml(card.folder / CARD)["files"]
    return card.folder / str(files["network"])


def _card_toml(card: ModelCard) -> str:
    """The card as TOML. Written by hand: the few kinds of values here need no further package."""
    top = ("name", "version", "description", "licence", "training_data", "parameters", "classes")
    lines = [f"{key} = {_toml(getattr(card, key))}" for key in top]
    lines += ["", "[input]", f"resolution_m = {_toml(card.spec.resolution_m)}"]
    for modality in card.spec.modalities:
        bands = "".join(f"  {_toml(asdict(band))},\n" for band in modality.bands)
        lines += ["", "[[input.modalities]]", f"name = {_toml(modality.name)}", f"bands = [\n{bands}]"]
    lines += ["", "[tiles]", f"chip_px = {card.chip_px}", f"overlap_px = {card.overlap_px}"]
    lines += ["", "[thresholds]", f"score = {_toml(card.score_threshold)}", f"mask = {card.mask_threshold}"]
    if card.temperature != 1:
        lines.append(f"temperature = {_toml(card.temperature)}")
    files = {
        "network": NETWORK,
        "network_sha256": card.network_sha256,
        "weights": WEIGHTS,
        "weights_bytes": card.weights_bytes,
        "weights_sha256": card.sha256,
    }
    lines += ["", "[files]", *(f"{key} = {_toml(value)}" for key, value in files.items())]
    for score in card.scores:
        lines += ["", "[[scores]]", *(f"{key} = {_toml(value)}" for key, value in asdict(score).items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # a JSON string is a TOML basic string, apart from DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise TypeError(f"a card holds text, numbers, lists and tables, got {value!r}")


def _calibrated_readme(card: ModelCard, changed: ModelCard, scores: Sequence[Score]) -> str:
    """The bundle's text for people, with a last section that says what has changed."""
    path = card.folder / README
    old = path.read_text(encoding="utf-8") if path.is_file() else _card_readme(card)
    before = old.partition(_CALIBRATION)[0].rstrip()
    return (
        f"{before}\n\n{_CALIBRATION}\n\nFootprints count from a score of {changed.score_threshold:g} on, "
        f"with a temperature of {changed.temperature:.4g}. The scores above were measured before that.\n\n"
        f"{_score_lines(scores)}\n"
    )


def _score_lines(scores: Iterable[Score]) -> str:
    return (
        "\n".join(f"- {s.name}: {s.value:g} on {s.data} (`{s.command}`)" for s in scores) or "None measured."
    )


def _card_readme(card: ModelCard) -> str:
    bands = "\n".join(f"- {m.name}: {', '.join(m.band_names)}" for m in card.spec.modalities)
    return (
        f"# {card.name} {card.version}\n\n{card.description}\n\n"
        f"Looks at {card.spec.resolution_m:g} m per pixel, chips of {card.chip_px} px, "
        f"{card.parameters / 1e6:.1f} M parameters.\n\n{bands}\n\n"
        f"## Training data\n\n{card.training_data}\n\n## Licence\n\n{card.licence}\n\n"
        f"## Scores\n\n{_score_lines(card.scores)}\n"
    )
