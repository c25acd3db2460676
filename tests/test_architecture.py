"""The direction of the arrows, held: who may import whom, and what starts at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rtsmap"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part of the package may import of the others (besides itself and `rtsmap` itself).
MAY_IMPORT = {
    "errors": set(),
    "wording": set(),
    "timing": set(),
    "garbage": set(),
    "atomic": {"errors"},
    "sandbox": {"errors"},
    "rasters": {"errors", "atomic", "sandbox", "timing"},
    "models": {"errors", "rasters"},
    "instances": {"errors", "rasters"},
    "vectors": {"wording", "errors", "atomic", "sandbox", "rasters", "instances"},
    "simulate": {"errors", "rasters", "instances", "vectors"},
    "nets": {"errors"},
    "mm": {"errors", "timing", "rasters", "instances", "models", "nets"},
    "runs": {
        "wording",
        "errors",
        "atomic",
        "sandbox",
        "timing",
        "garbage",
        "rasters",
        "instances",
        "vectors",
        "models",
    },
    "cli": {
        "wording",
        "errors",
        "sandbox",
        "timing",
        "garbage",
        "rasters",
        "instances",
        "vectors",
        "models",
        "runs",
        "simulate",
        "mm",
    },
}

# Modules that alone may cross a line, each for one reason.
CROSSINGS = {
    ("runs/engine.py", "mm"),  # loads the network
    ("runs/packing.py", "mm"),  # writes the packs that training reads
    ("runs/chip_packs.py", "mm"),
    ("__main__.py", "cli"),  # python -m rtsmap
    ("__init__.py", "models"),  # the public names
    ("__init__.py", "runs"),
}

# Frameworks that stay in their corner.
ONLY_IN = {
    "mmdet": ("mm/",),
    "mmengine": ("mm/",),
    "mmcv": ("mm/",),
    "torch": ("nets/", "mm/"),
    "torchvision": ("nets/", "mm/"),
    "geopandas": ("vectors/",),
    "pyogrio": ("vectors/",),
    # reading goes through opening.py; first_look.py looks in a process of its own, upright.py says how GDAL
    # turns a raster; the others turn masks into polygons, or show a version
    "rasterio": (
        "rasters/sources.py",
        "rasters/fingerprints.py",
        "rasters/reading.py",
        "rasters/warping.py",
        "rasters/writing.py",
        "rasters/first_look.py",
        "rasters/upright.py",
        "rasters/opening.py",
        "rasters/cog.py",
        "instances/polygons.py",
        "runs/packing.py",
        "cli/doctor.py",
    ),
    "typer": ("cli/",),
    "rich": ("cli/",),
}

HEAVY = {"torch", "numpy", "rasterio", "pyproj", "odc", "geopandas", "pyogrio", "shapely", "scipy", "pyarrow"}


class _AtRunTime(ast.NodeTransformer):
    """Drops what only type checkers see."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_typing else self.generic_visit(node)


def imports(path: Path) -> list[str]:
    """Dotted names of all that a module imports, also inside functions; relative ones refused."""
    names = []
    tree = _AtRunTime().visit(ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from rtsmap import x` may name a module
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part_of(path: Path) -> str:
    """`rasters` for rtsmap/rasters/bands.py, `models` for rtsmap/models.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way_and_frameworks_stay_in_their_corner(path):
    name, part = path.relative_to(PACKAGE).as_posix(), part_of(path)
    allowed = MAY_IMPORT.get(part, set()) | {part}
    for imported in imports(path):
        top, _, rest = imported.partition(".")
        other = rest.partition(".")[0]
        if top == "rtsmap" and other in MAY_IMPORT:
            fine = other in allowed or (name, other) in CROSSINGS
            assert fine, f"rtsmap/{name} must not import rtsmap.{other}"
        corners = ONLY_IN.get(top, ("",))
        assert name.startswith(corners), f"rtsmap/{name} must not import {top}: only {corners} may"


def test_no_module_is_a_dumping_ground():
    for path in MODULES:
        assert path.stem not in {"utils", "util", "common", "helpers", "base", "core", "misc"}, path


def test_every_part_has_its_place_in_the_order():
    parts = {part_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert parts <= set(MAY_IMPORT), f"new parts need a line in MAY_IMPORT: {parts - set(MAY_IMPORT)}"


def test_tests_mirror_the_package():
    tests = Path(__file__).parent
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            assert list((tests / folder.name).glob("test_*.py")), f"no tests in tests/{folder.name}"


@pytest.mark.parametrize("module", ["rtsmap", "rtsmap.cli.main"])
def test_importing_the_command_line_loads_nothing_heavy(module):
    code = f"import {module}, sys; print(' '.join(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in out.split()}
    assert not loaded & HEAVY


def test_public_names_are_those_announced():
    import rtsmap

    assert set(rtsmap.__all__) <= set(dir(rtsmap))
    for name in rtsmap.__all__:
        assert getattr(rtsmap, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        rtsmap.nonsense  # noqa: B018
