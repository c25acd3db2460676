"""What the network finds on a chip, and what several looks at it agree on. Plain tensors, no mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rtsmap.nets.vision import torchvision

SAME_IOU = 0.5
"""Boxes of two looks that overlap so much are of one slump."""
_PARTS = ("boxes", "scores", "masks")
_TINY = 1e-12
"""Scores may be 0 where even those are wanted."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the network finds on one chip, best score first; box-local masks, never pasted.

    boxes (n, 4) x1 y1 x2 y2 in chip pixels, scores (n,) 0..1, masks (n, m, m) probabilities over the box.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor


def agreed(looks: Sequence[Found], min_score: float, most: int) -> Found:
    """One list out of several looks at the same chip.

    What scores best gathers from each other look the one that overlaps it most, `SAME_IOU` or more, and so on
    with what is left. Box and mask of a slump are means weighted by score, as in Solovyev et al. 2021
    (Weighted boxes fusion). Its score is the mean over the better half of all looks, where one that does not
    see it counts as 0: unlike the mean over all, this leaves scores on the scale of a single look, so that
    thresholds keep their meaning. At most `most` slumps with at least `min_score` are kept.
    """
    sighted = [one for one in looks if len(one.scores)]
    if len(looks) == 1 or not sighted:
        return looks[0]
    boxes, scores, masks = (torch.cat([getattr(one, part).float() for one in sighted]) for part in _PARTS)
    look = np.repeat(np.arange(len(looks)), [len(one.scores) for one in looks])
    order = scores.argsort(descending=True, stable=True)
    overlaps = torchvision.ops.box_iou(boxes[order], boxes[order])
    slump = torch.from_numpy(_gathered(overlaps.cpu().numpy(), look[order.cpu().numpy()])).to(scores.device)
    seen = functional.one_hot(slump).T * scores[order]
    better = max(1, len(looks) // 2)
    joint = seen.topk(min(better, seen.shape[1]), dim=1).values.sum(1) / better
    best = joint.argsort(descending=True, stable=True)[:most]
    best = best[joint[best] >= min_score]
    weights = (seen / seen.sum(1, keepdim=True).clamp(min=_TINY))[best]
    return Found(
        weights @ boxes[order],
        joint[best],
        (weights @ masks[order].flatten(1)).unflatten(1, masks.shape[1:]),
    )


def _gathered(overlaps: npt.NDArray[np.float32], look: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number, from 0, of the slump that each of n boxes is of, from their IoU (n, n), best score first."""
    slump = np.full(len(look), -1)
    count = 0
    for leader in range(len(look)):
        if slump[leader] >= 0:
            continue
        slump[leader] = count
        near = np.flatnonzero((slump < 0) & (look != look[leader]) & (overlaps[leader] >= SAME_IOU))
        near = near[np.argsort(-overlaps[leader, near], kind="stable")]
        _, nearest = np.unique(look[near], return_index=True)
        slump[near[nearest]] = count
        count += 1
    return slump
