"""From training samples to the tensors that the network takes."""

from __future__ import annotations

from collections.abc import Sequence

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
    height = max(sample.ignored.shape[0] for sample in samples)
    width = max(sample.ignored.shape[1] for sample in samples)
    inputs = {}
    for modality in spec.modalities:
        pixels = np.zeros((len(samples), len(modality.bands), height, width), np.float32)
        valid = np.zeros((len(samples), height, width), np.bool_)
        for i, sample in enumerate(samples):
            layer = sample.layers[modality.name]
            rows, cols = layer.valid.shape
            pixels[i, :, :rows, :cols] = normalise(layer, modality)
            valid[i, :rows, :cols] = layer.valid
        inputs[modality.name] = (torch.from_numpy(pixels).to(device), torch.from_numpy(valid).to(device))
    return inputs, [_target(sample, (height, width), device) for sample in samples]


def stack_kinds(samples: Sequence[Sample], device: str) -> Tensor:
    """Kinds (B, H, W) uint8, padded like `collate` does, with unknown."""
    height = max(sample.kinds.shape[0] for sample in samples)
    width = max(sample.kinds.shape[1] for sample in samples)
    kinds = np.full((len(samples), height, width), UNKNOWN_KIND, np.uint8)
    for i, sample in enumerate(samples):
        rows, cols = sample.kinds.shape
        kinds[i, :rows, :cols] = sample.kinds
    return torch.from_numpy(kinds).to(device)


def stack_judged(samples: Sequence[Sample], device: str) -> Tensor:
    """1 where the network is judged, 0 on ground to ignore: (B, H, W) float32, padded like `collate` does."""
    height = max(sample.ignored.shape[0] for sample in samples)
    width = max(sample.ignored.shape[1] for sample in samples)
    judged = np.ones((len(samples), height, width), np.float32)
    for i, sample in enumerate(samples):
        rows, cols = sample.ignored.shape
        judged[i, :rows, :cols] = ~sample.ignored
    return torch.from_numpy(judged).to(device)


def _target(sample: Sample, shape: tuple[int, int], device: str) -> Target:
    rows, cols = sample.ignored.shape
    masks = np.zeros((len(sample.masks), *shape), np.bool_)
    masks[:, :rows, :cols] = sample.masks
    ignored = np.array(_ignored_boxes(sample.ignored), np.float32).reshape(-1, 4)
    return Target(
        torch.from_numpy(sample.boxes).to(device),
        torch.from_numpy(masks).to(device),
        torch.from_numpy(ignored).to(device),
    )


def _ignored_boxes(ignored: npt.NDArray[np.bool_]) -> list[list[int]]:
    pieces, _ = ndimage.label(ignored)
    return [[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in ndimage.find_objects(pieces)]
