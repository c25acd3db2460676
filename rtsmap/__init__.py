"""rtsmap maps retrogressive thaw slumps from optical scenes and elevation models."""

from __future__ import annotations

__version__ = "0.1.0"
