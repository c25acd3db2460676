"""What a user would try instead: an ordinary Mask R-CNN on ImageNet features, and a U-Net with components.

    python -m tests.benchmarks.yardsticks train mask_rcnn PACKS RUN --weights MOBILENET --accumulate 2
    python -m tests.benchmarks.yardsticks train unet PACKS RUN --accumulate 2
    rtsmap evaluate chips LABELS --submission OURS.json
    python -m tests.benchmarks.yardsticks score unet RUN LABELS --dev PACK [--groups FILE] [--against OURS]

Both see the chips, augmentations and number of steps of the starter model's last training (optical bands
alone), as many chips a step as its two processes (`torchrun --nproc-per-node 2` does the same). `score`
chooses the score threshold with the best F1 on held-out training chips, then prints what `rtsmap evaluate
chips` prints for a model, and with `--against` what that model scores more, on the same draws of groups.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.instances.coco_scores import SETTINGS, DrawnScores, object_matches
from rtsmap.instances.detections import Detection, crop_mask, touched_sides
from rtsmap.instances.intervals import group_intervals
from rtsmap.mm.batches import normalise
from rtsmap.mm.detector import MmDetector
from rtsmap.mm.packs import read_index
from rtsmap.mm.register import (
    NetworkConfig,
    SlumpNetwork,
    Target,
    cascade_plan,
    quiet_mmengine,
    register_parts,
)
from rtsmap.mm.samples import SampleOptions, SampleSource, make_sample
from rtsmap.mm.train import Ranks, TrainOptions, seed_everything, train
from rtsmap.mm.validate import best_f1, chip_of, match_sample
from rtsmap.nets.fusion import Inputs
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from rtsmap.rasters.chips import Chip
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_scores import (
    OBJECT_IOUS,
    LabelledChips,
    find_on_chips,
    read_results,
    score_chips,
)
from rtsmap.runs.engine import Engine

SPEC = InputSpec(4.0, (OPTICAL_RGB,))
HEADS = NetworkConfig(
    fpn_channels=128,
    mask_channels=128,
    mask_convs=4,
    box_fc_channels=512,
    rois_per_chip=64,
    rpn_proposals=200,
    cascade_iou=(0.5,),
    cascade_weights=(1.0,),
)
TRAINING = {
    "mask_rcnn": TrainOptions(steps=2400, lr=8e-4, backbone_lr_factor=0.25, dense_loss=0.0, keep_every=200),
    "unet": TrainOptions(steps=2400, lr=8e-4, dense_loss=0.0, keep_every=200),
}


class ImageNetMobileNet(nn.Module):
    """torchvision's MobileNetV2, maps at strides 4, 8, 16 and 32; batch norms stay as ImageNet left them."""

    WIDTHS = (24, 32, 96, 320)
    _CUTS = (0, 4, 7, 14, 18)

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        model = torchvision.models.mobilenet_v2(weights=None)
        if weights:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        cuts = zip(self._CUTS, self._CUTS[1:], strict=False)
        self.stages = nn.ModuleList(model.features[start:end] for start, end in cuts)
        bands = OPTICAL_RGB.bands
        ours = torch.tensor([[b.mean, b.sd] for b in bands]).T[:, :, None, None] / 255
        imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        self.register_buffer("scale", ours[1] / imagenet[1])
        self.register_buffer("shift", (ours[0] - imagenet[0]) / imagenet[1])

    def train(self, mode: bool = True) -> ImageNetMobileNet:  # noqa: FBT001, FBT002 - torch's signature
        """Training mode, but for the batch norms: batches of a few chips would spoil them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """Four maps, finest first."""
        pixels, valid = inputs["optical"]
        maps = [(pixels * self.scale + self.shift) * valid[:, None]]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def mask_rcnn(weights: Path | None) -> SlumpNetwork:
    """One stage of boxes and masks on MobileNetV2 and FPN."""
    register_parts()
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    if "YardstickMobileNet" not in MODELS:
        MODELS.register_module(name="YardstickMobileNet", module=ImageNetMobileNet)
    plan = cascade_plan(HEADS, SPEC)
    plan["backbone"] = {"type": "YardstickMobileNet", "weights": weights}
    plan["neck"]["in_channels"] = list(ImageNetMobileNet.WIDTHS)
    with quiet_mmengine():
        detector = MODELS.build(ConfigDict(plan))
        detector.init_weights()
    return SlumpNetwork(detector, HEADS, SPEC)


class UNet(nn.Module):
    """Four levels of two convolutions each, half a million weights; a slump probability for each pixel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.spec = SPEC
        widths = [width << level for level in range(4)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(_block(widths[i] + widths[i - 1], widths[i - 1]) for i in (3, 2, 1))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits (B, H, W); H and W are padded to multiples of eight on the way."""
        pixels, _ = inputs["optical"]
        height, width = pixels.shape[-2:]
        maps = [functional.pad(pixels, (0, -width % 8, 0, -height % 8))]
        for level, block in enumerate(self.down):
            maps.append(block(functional.max_pool2d(maps[-1], 2) if level else maps[-1]))
        out = maps.pop()
        for block in self.up:
            out = block(torch.cat([functional.interpolate(out, scale_factor=2), maps.pop()], 1))
        return self.head(out)[:, 0, :height, :width]

    def loss(self, inputs: Inputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Cross-entropy with heavier slumps, plus Dice: the per-pixel loss of our own training."""
        logits = self(inputs)
        truth = torch.stack([target.masks.any(dim=0) for target in targets]).float()
        entropy = functional.binary_cross_entropy_with_logits(
            logits, truth, pos_weight=logits.new_tensor(5.0)
        )
        probability = logits.sigmoid()
        dice = 1 - (2 * (probability * truth).sum() + 1) / ((probability + truth).sum() + 1)
        return {"loss_entropy": entropy, "loss_dice": dice}


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ComponentDetector:
    """Connected components of a U-Net's probability above a half; their score is its mean over them."""

    def __init__(self, network: UNet, least_px: int = 10) -> None:
        self.network, self.least_px = network.eval(), least_px

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        """One list of detections for each chip."""
        return [self._of(chip) for chip in chips]

    @torch.no_grad()
    def _of(self, chip: Chip) -> list[Detection]:
        layer = chip.layers["optical"]
        pixels = torch.from_numpy(normalise(layer, OPTICAL_RGB))[None]
        logits = self.network({"optical": (pixels, torch.from_numpy(layer.valid)[None])})
        probability = logits.sigmoid()[0].numpy() * layer.valid
        labels, count = ndimage.label(probability >= 0.5)
        found = []
        for label in range(1, count + 1):
            inside = labels == label
            if inside.sum() < self.least_px:
                continue
            corner = (chip.tile.read.row0, chip.tile.read.col0)
            window, mask = crop_mask(np.where(inside, 255, 0).astype(np.uint8), corner)
            sides = touched_sides(window, chip.tile)
            score = float(probability[inside].mean())
            found.append(Detection(score, window, mask, chip.tile.index, sides, ("optical",)))
        return sorted(found, key=lambda part: -part.score)


def build(kind: str, weights: Path | None = None):
    """The untrained yardstick."""
    return mask_rcnn(weights) if kind == "mask_rcnn" else UNet()


def detector_of(kind: str, network: nn.Module):
    """What finds slumps with it."""
    return MmDetector(network, device="cpu") if kind == "mask_rcnn" else ComponentDetector(network)


def sample_groups(packs: Path, real_share: float):
    """Simulated scenes and real chips, as examples/train_starter.py draws them."""
    paths = [path for path in sorted((packs / "training").glob("*.pack")) if int(path.stem) < 9000]
    simulated = [image for path in paths for image in read_index(path)]
    return [(1 - real_share, simulated), (real_share, list(read_index(packs / "real_train.pack")))]


def train_it(arguments) -> None:
    """Train a yardstick; killed, it goes on from its last checkpoint."""
    torch.set_num_threads(1)
    options = replace(
        TRAINING[arguments.kind],
        steps=arguments.steps,
        seed=arguments.seed,
        accumulate=arguments.accumulate,
    )
    ranks = Ranks.from_torchrun()
    seed_everything(options.seed)
    source = SampleSource(
        sample_groups(arguments.packs, arguments.real_share),
        SPEC,
        SampleOptions(chip_px=192, slump_share=0.5, collage_share=0.5),
        options.seed,
    )
    train(
        build(arguments.kind, arguments.weights),
        source,
        options,
        arguments.run,
        ranks=ranks,
        on_step=lambda step, row: print(step, {k: round(v, 4) for k, v in row.items()}, flush=True),
    )


def best_threshold(detector, pack: Path) -> float:
    """The score threshold with the best F1 at IoU 0.3 on packed chips."""
    hits, slumps = [], 0
    for image in read_index(pack):
        sample = make_sample(image.read(Window(0, 0, *image.shape)), SPEC, SampleOptions(), None)
        hits += match_sample(detector.detect([chip_of(sample)])[0], sample, 0.3)
        slumps += len(sample.masks)
    return best_f1(hits, slumps, 0.3)[1]


def score_it(arguments) -> None:
    """Print the scores of a trained yardstick on labelled chips."""
    network = build(arguments.kind)
    state: Mapping = torch.load(arguments.run / "last.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state["average"])
    detector = detector_of(arguments.kind, network)
    threshold = best_threshold(detector, arguments.dev)
    engine = Engine(SPEC, 256, 64, {}, lambda: detector, min_score=threshold)
    chips = LabelledChips.read(arguments.labels, groups=arguments.groups)
    results = find_on_chips(chips, engine)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"{arguments.kind}, step {state['step']}, {parameters:.1f} M parameters, threshold {threshold:.2f}")
    for settings in SETTINGS:
        print(f"{settings} settings")
        figures = score_chips(chips, results, min_score=threshold, settings=settings)
        _print({name: (figure.value, *figure.interval) for name, figure in figures.items()})
    if arguments.against:
        print(f"{arguments.against} (objects from score {arguments.against_score}) minus {arguments.kind}")
        ours = scorer(chips, read_results(arguments.against, chips), arguments.against_score)
        _print(differences(ours, scorer(chips, results, threshold), len(set(chips.group_of.values()))))


def _print(figures: Mapping[str, tuple[float, float, float]]) -> None:
    for name, (value, low, high) in figures.items():
        print(f"{name:24} {value:.3f} ({low:.3f} to {high:.3f})")


Scorer = Callable[[Sequence[int]], dict[str, float]]


def scorer(chips: LabelledChips, results: Sequence[Mapping], min_score: float) -> Scorer:
    """Gives average precision and F1 of objects of drawn groups of chips, by number."""
    drawn = DrawnScores.of(chips.document, results, chips.group_of.__getitem__)
    sure = [result for result in results if result["score"] >= min_score]
    counts = {iou: np.zeros((len(drawn.groups), 3)) for iou in OBJECT_IOUS}
    for iou, table in counts.items():
        for image, matches in object_matches(chips.document, sure, iou).items():
            row = drawn.groups.index(chips.group_of[image])
            table[row] += matches.true_positives, matches.n_predicted, matches.n_truth

    def scores(groups: Sequence[int]) -> dict[str, float]:
        precisions = {name: value for name, value in drawn(groups).items() if name in {"AP", "AP50", "AP75"}}
        sums = {iou: table[list(groups)].sum(axis=0) for iou, table in counts.items()}
        return precisions | {f"F1 at {iou}": 2 * hit / (n + m) for iou, (hit, n, m) in sums.items()}

    return scores


def differences(ours: Scorer, theirs: Scorer, n_groups: int) -> dict[str, tuple[float, float, float]]:
    """What `ours` scores more, with a 95 % interval over groups that are drawn for both."""

    def gap(groups: Sequence[int]) -> dict[str, float]:
        mine, other = ours(groups), theirs(groups)
        return {name: mine[name] - other[name] for name in mine}

    intervals = group_intervals(n_groups, gap, resamples=400)
    return {name: (value, *intervals[name]) for name, value in gap(range(n_groups)).items()}


def main() -> None:
    """Train or score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.set_defaults(do=train_it)
    training.add_argument("kind", choices=TRAINING)
    training.add_argument("packs", type=Path)
    training.add_argument("run", type=Path)
    training.add_argument("--steps", type=int, default=2400)
    training.add_argument("--real-share", type=float, default=0.7)
    training.add_argument("--seed", type=int, default=5)
    training.add_argument("--accumulate", type=int, default=1)
    training.add_argument("--weights", type=Path)
    scoring = commands.add_parser("score")
    scoring.set_defaults(do=score_it)
    scoring.add_argument("kind", choices=TRAINING)
    scoring.add_argument("run", type=Path)
    scoring.add_argument("labels", type=Path)
    scoring.add_argument("--groups", type=Path)
    scoring.add_argument("--dev", type=Path, required=True)
    scoring.add_argument("--against", type=Path, help="COCO results of another model")
    scoring.add_argument("--against-score", type=float, default=0.5)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
