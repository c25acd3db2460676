"""rtsmap maps retrogressive thaw slumps from optical scenes and elevation models.

    import rtsmap
    slumps = rtsmap.predict("scene.tif", dem="dem.tif")

The public names load when they are first used, so that importing rtsmap costs nothing (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtsmap.models import ModelCard, find_bundle, list_bundles, load_bundle, read_card
    from rtsmap.runs.frames import predict
    from rtsmap.runs.mapping import PredictOptions

__version__ = "0.1.0"

__all__ = [
    "ModelCard",
    "PredictOptions",
    "__version__",
    "find_bundle",
    "list_bundles",
    "load_bundle",
    "predict",
    "read_card",
]

_HOMES = {
    "ModelCard": "rtsmap.models",
    "PredictOptions": "rtsmap.runs.mapping",
    "find_bundle": "rtsmap.models",
    "list_bundles": "rtsmap.models",
    "load_bundle": "rtsmap.models",
    "predict": "rtsmap.runs.frames",
    "read_card": "rtsmap.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rtsmap' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
