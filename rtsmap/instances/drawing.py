"""Outlines of masks on pictures of chips: what was found and what is true look the same on every sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FOUND, TRUE = "#ffd23f", "#00e5ff"


def draw_outline(axis: Any, mask: npt.NDArray[np.bool_], colour: str, style: str) -> None:
    """A line around a mask; the margin closes it where the mask reaches the chip's edge."""
    if mask.any():
        height, width = mask.shape
        axis.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            np.pad(mask, 1).astype(np.float32),
            levels=[0.5],
            colors=[colour],
            linestyles=[style],
            linewidths=1.1,
        )


def draw_true(axis: Any, mask: npt.NDArray[np.bool_]) -> None:
    """A true outline, dashed."""
    draw_outline(axis, mask, TRUE, "--")


def draw_found(axis: Any, mask: npt.NDArray[np.bool_], score: float) -> None:
    """An outline that was found, with its score above it, within the chip."""
    draw_outline(axis, mask, FOUND, "-")
    if mask.any():
        top, left = (int(at[0]) for at in np.nonzero(mask))
        place = left, max(top, 0.09 * mask.shape[0])
        axis.text(*place, f"{score:.2f}", color=FOUND, fontsize=6, va="bottom")


def explain_outlines(figure: Any) -> None:
    """The legend of a sheet."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=TRUE, linestyle="--", label="true outline"),
        Line2D([], [], color=FOUND, label="found, with its score"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
