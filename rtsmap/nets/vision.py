"""torchvision, imported without torch's compiler, which it asks only whether it would compile RoIAlign.

That question alone takes seconds of imports, in every process of a run. It is asked when it comes up.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import torch  # noqa: F401 - must be whole before a part of it is stood in for

__all__ = ["torchvision"]

_COMPILER, _QUESTIONS = "torch._dynamo", "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    return bool(importlib.import_module(_QUESTIONS).is_compile_supported(device_type))


def _imported() -> Any:
    if _COMPILER in sys.modules or "torchvision" in sys.modules:
        return importlib.import_module("torchvision")
    compiler, questions = types.ModuleType(_COMPILER), types.ModuleType(_QUESTIONS)
    questions.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {_COMPILER: compiler, _QUESTIONS: questions}
    try:
        return importlib.import_module("torchvision")
    except (ImportError, AttributeError):
        # another version asks for more: then with all that it wants
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name, stand_in in ((_COMPILER, compiler), (_QUESTIONS, questions)):
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
    return importlib.import_module("torchvision")


torchvision: Any = _imported()
"""The package."""
