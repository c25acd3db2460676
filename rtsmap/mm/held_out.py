"""Held-out chips: looked at while a training runs, never learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rtsmap.instances.detections import Detection
from rtsmap.mm.detector import MmDetector
from rtsmap.mm.packs import PackedImage
from rtsmap.mm.register import SlumpNetwork
from rtsmap.mm.samples import Sample, SampleOptions, make_sample
from rtsmap.mm.validate import Hit, average_precision, best_f1, chip_of, match_sample
from rtsmap.rasters.bands import InputSpec
from rtsmap.rasters.tiling import Window


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Fixed samples by the name of their set."""

    sets: Mapping[str, Sequence[Sample]]

    @classmethod
    def cut(
        cls,
        images: Mapping[str, Sequence[PackedImage]],
        spec: InputSpec,
        options: SampleOptions,
        most: int,
    ) -> HeldOut:
        """Chips side by side from every image, without augmentation; at most `most` of each set."""
        sets = {}
        for name, packed in images.items():
            places = [(image, window) for image in packed for window in _windows(image, options.chip_px)]
            every = max(1, -(-len(places) // most))
            sets[name] = [
                make_sample(image.read(window), spec, options, None) for image, window in places[::every]
            ]
        return cls({name: samples for name, samples in sets.items() if samples})

    def scores(self, network: SlumpNetwork, device: str) -> dict[str, float]:
        """Best F1 at IoU 0.3 with its threshold, precision and recall, F1 at 0.5 and AP50 of each set."""
        result: dict[str, float] = {}
        for name, found in self.detections(network, device).items():
            samples = self.sets[name]
            result |= {f"{name}_{key}": value for key, value in _scores(found, samples).items()}
        return result

    def detections(self, network: SlumpNetwork, device: str) -> dict[str, list[list[Detection]]]:
        """What the network finds on each sample of each set."""
        detector = MmDetector(network, device=device, precision="fp32")
        return {
            name: detector.detect([chip_of(sample) for sample in samples])
            for name, samples in self.sets.items()
        }


def _scores(found: Sequence[Sequence[Detection]], samples: Sequence[Sample]) -> dict[str, float]:
    slumps = sum(len(sample.masks) for sample in samples)
    loose, strict = (_hits(found, samples, iou) for iou in (0.3, 0.5))
    f1_30, threshold, precision, recall = best_f1(loose, slumps, 0.3)
    return {
        "f1_30": f1_30,
        "threshold": threshold,
        "precision": precision,
        "recall": recall,
        "f1_50": best_f1(strict, slumps, 0.5)[0],
        "ap50": average_precision(strict, slumps, 0.5),
    }


def _hits(found: Sequence[Sequence[Detection]], samples: Sequence[Sample], iou: float) -> list[Hit]:
    pairs = zip(found, samples, strict=True)
    return [hit for detections, sample in pairs for hit in match_sample(detections, sample, iou)]


def best_threshold(watched: Sequence[Mapping[str, float]]) -> float:
    """The score threshold of the best F1 in the last row of what was watched, else 0.5.

    The mean over the held-out sets on which something was right.
    """
    last = watched[-1] if watched else {}
    sets = [key.removesuffix("_f1_30") for key in last if key.endswith("_f1_30") and last[key] > 0]
    found = [last[f"{name}_threshold"] for name in sets]
    return round(sum(found) / len(found), 3) if found else 0.5


def _windows(image: PackedImage, side_px: int) -> list[Window]:
    """Chips side by side; the last ones end at the border, an image smaller than a chip is one."""
    height, width = image.shape
    rows, cols = _starts(height, side_px), _starts(width, side_px)
    return [
        Window(row, col, min(row + side_px, height), min(col + side_px, width))
        for row in rows
        for col in cols
    ]


def _starts(size: int, side_px: int) -> list[int]:
    last = max(0, size - side_px)
    return [*range(0, last, side_px), last]
