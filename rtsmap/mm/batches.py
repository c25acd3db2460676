"""From training samples to the tensors that the network takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from rtsmap.mm.packs import UNKNOWN_KIND
from rtsmap.mm.register import Target
from rtsmap.mm.samples import Sample
from rtsmap.rasters.bands import InputSpec, Modality
from rtsmap.rasters.chips import Layer


def normalise(layer: Layer, modality: Modality) -> npt.NDArray[np.float32]:
    """Clip to the bands' ranges, then (value - mean) / sd; invalid pixels become 0. (C, H, W) float32."""
    low, high, mean, sd = (
        np.array([getattr(band, key) for band in modality.bands], np.float32)[:, None, None]
        for key in ("low", "high", "mean", "sd")
    )
    values = (np.clip(layer.pixels, low, high) - mean) / sd
    return np.where(layer.valid, values, np.float32(0))


def collate(
    samples: Sequence[Sample], spec: InputSpec, device: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Target]]:
    """Stack samples, padded to the largest height and width with invalid pixels, and their targets."""
    inputs = {}
    for modality in spec.modalities:
        layers = [sample.layers[modality.name] for sample in samples]
        pixels = _stacked([normalise(layer, modality) for layer in layers], 0, device)
        inputs[modality.name] = (pixels, _stacked([layer.valid for layer in layers], 0, device))
    masks = _padded([sample.masks for sample in samples], 0)
    return inputs, [_target(sample, mask, device) for sample, mask in zip(samples, masks, strict=True)]


def stack_kinds(samples: Sequence[Sample], device: str) -> Tensor:
    """Kinds (B, H, W) uint8, padded like `collate` does, with unknown."""
    return _stacked([sample.kinds for sample in samples], UNKNOWN_KIND, device)


def stack_judged(samples: Sequence[Sample], device: str) -> Tensor:
    """1 where the network is judged, 0 on ground to ignore: (B, H, W) float32, padded like `collate` does."""
    return _stacked([(~sample.ignored).astype(np.float32) for sample in samples], 1, device)


def _stacked(arrays: Sequence[npt.NDArray[Any]], fill: int, device: str) -> Tensor:
    return torch.from_numpy(np.stack(_padded(arrays, fill))).to(device)


def _padded(arrays: Sequence[npt.NDArray[Any]], fill: int) -> list[npt.NDArray[Any]]:
    """Arrays (..., H, W), each as high and wide as the largest."""
    height, width = (max(array.shape[axis] for array in arrays) for axis in (-2, -1))
    return [
        np.pad(
            array,
            [(0, 0)] * (array.ndim - 2) + [(0, height - array.shape[-2]), (0, width - array.shape[-1])],
            constant_values=fill,
        )
        for array in arrays
    ]


def _target(sample: Sample, masks: npt.NDArray[np.bool_], device: str) -> Target:
    ignored = np.array(_ignored_boxes(sample.ignored), np.float32).reshape(-1, 4)
    return Target(
        torch.from_numpy(sample.boxes).to(device),
        torch.from_numpy(masks).to(device),
        torch.from_numpy(ignored).to(device),
    )


def _ignored_boxes(ignored: npt.NDArray[np.bool_]) -> list[list[int]]:
    pieces, _ = ndimage.label(ignored)
    return [[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in ndimage.find_objects(pieces)]
