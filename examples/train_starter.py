"""Trains the starter model: each modality alone on per-pixel labels, then the fused network.

    python examples/train_starter.py optical  PACKS RUN
    python examples/train_starter.py terrain  PACKS RUN
    torchrun --nproc-per-node 2 examples/train_starter.py fused PACKS RUN
    torchrun --nproc-per-node 2 examples/train_starter.py fused PACKS RUN2 --weights RUN/fused/last.pt
    torchrun ... fused PACKS RUN3 --weights RUN2/fused/last.pt --imagenet mobilenet_v2-b0353104.pth

PACKS holds packs written by rtsmap.mm.packs: `training/*.pack` (simulated scenes), `real_train.pack` and
`real_dev.pack` (labelled chips without terrain). RUN is where checkpoints go; `fused` looks there for the
two others. A killed training goes on from its last checkpoint when started again; `--weights` begins a new
schedule at the averaged weights of another one, as far as they fit; `--imagenet` fills the optical guide.

This is how rts-starter was made; `rtsmap train small` does the same from a recipe, with the fusion that has
measured best since (docs/measured.md).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from rtsmap.mm.backbones import branches_of
from rtsmap.mm.checkpoints import load_imagenet_guide
from rtsmap.mm.detector import MmDetector
from rtsmap.mm.packs import PackedImage, read_index
from rtsmap.mm.register import SlumpNetwork, build_network
from rtsmap.mm.samples import Sample, SampleOptions, SampleSource, make_sample
from rtsmap.mm.train import Ranks, TrainOptions, seed_everything, train
from rtsmap.mm.validate import average_precision, best_f1, chip_of, match_sample
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.tiling import Window

NETWORK = {
    "stem": "convolutions",
    "optical.guide": "mobilenet_v2",
    "embed_dim": 32,
    "stage_blocks": [1, 2, 3, 1],
    "terrain.embed_dim": 24,
    "terrain.stage_blocks": [1, 1, 2, 1],
    "fpn_channels": 64,
    "mask_channels": 64,
    "mask_convs": 2,
    "box_fc_channels": 192,
    "rois_per_chip": 48,
    "rpn_proposals": 150,
}
VALIDATE_EVERY = 1000
STAGES = {
    "optical": (InputSpec(4.0, (OPTICAL_RGB,)), TrainOptions(steps=2600, dense_only_steps=2600, lr=8e-4)),
    "terrain": (InputSpec(4.0, (TERRAIN,)), TrainOptions(steps=2600, dense_only_steps=2600, lr=8e-4, seed=1)),
    "fused": (
        InputSpec(4.0, (OPTICAL_RGB, TERRAIN)),
        TrainOptions(steps=2600, dense_only_steps=1500, lr=8e-4, dense_loss=0.7, keep_every=500, seed=2),
    ),
}


def main() -> None:
    """Train one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("packs", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dense-only-steps", type=int)
    parser.add_argument("--accumulate", type=int, default=1, help="2 sees the chips of two processes in one")
    parser.add_argument(
        "--weights", type=Path, help="last.pt of a training, or a bundle's weights.safetensors"
    )
    parser.add_argument("--imagenet", type=Path, help="torchvision's mobilenet_v2, for the optical guide")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--real-share", type=float, default=0.55)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec, options = STAGES[arguments.stage]
    if arguments.steps:
        dense_only = round(arguments.steps * options.dense_only_steps / options.steps)
        options = replace(options, steps=arguments.steps, dense_only_steps=dense_only)
    if arguments.dense_only_steps is not None:
        options = replace(options, dense_only_steps=arguments.dense_only_steps)
    if arguments.seed is not None:
        options = replace(options, seed=arguments.seed)
    options = replace(options, accumulate=arguments.accumulate)
    ranks = Ranks.from_torchrun()
    seed_everything(options.seed)
    network = build_network(stage_network(arguments.stage), spec)
    if arguments.weights:
        start_from_weights(network, arguments.weights)
    elif arguments.stage == "fused":
        start_from_branches(network, arguments.run)
    if arguments.imagenet:
        load_imagenet_guide(branches_of(network)["optical"], arguments.imagenet, OPTICAL_RGB)
    source = SampleSource(
        groups(arguments.stage, arguments.packs, arguments.real_share),
        spec,
        SampleOptions(chip_px=192, slump_share=0.5, collage_share=0.5),
        options.seed,
    )
    held_out = held_out_samples(arguments.stage, arguments.packs, spec)
    train(
        network,
        source,
        options,
        arguments.run / arguments.stage,
        ranks=ranks,
        validate=lambda net, step: scores(net, held_out) if step % VALIDATE_EVERY == 0 else {},
        on_step=lambda step, row: print(step, {k: round(v, 4) for k, v in row.items()}, flush=True),
    )


def stage_network(stage: str) -> dict[str, object]:
    """The network's numbers; a single terrain branch keeps the numbers that it has in the fused network."""
    if stage == "fused":
        return NETWORK
    keep = {key: value for key, value in NETWORK.items() if "." not in key or key.startswith(f"{stage}.")}
    return {**keep, "fusion": "data_level"}


def start_from_weights(network: SlumpNetwork, path: Path) -> None:
    """Copy the averaged weights of another training, as far as names and shapes agree.

    A network of one modality takes its branch of a fused one.
    """
    if path.suffix == ".safetensors":
        trained = load_file(path)
    else:
        trained = torch.load(path, map_location="cpu", weights_only=True)["average"]
    lone = f"fusion.branches.{network.spec.names[0]}."
    if len(network.spec.modalities) == 1:
        trained = {name.replace(lone, "fusion.branch."): value for name, value in trained.items()}
    state = network.state_dict()
    fitting = {k: v for k, v in trained.items() if k in state and state[k].shape == v.shape}
    print(f"{path}: {len(fitting)} of {len(state)} tensors taken", flush=True)
    network.load_state_dict({**state, **fitting})


def start_from_branches(network: SlumpNetwork, run: Path) -> None:
    """Copy the branches, and the pyramid of the optical stage, where those stages were trained."""
    state = network.state_dict()
    for stage in ("optical", "terrain"):
        path = run / stage / "last.pt"
        if not path.exists():
            continue
        trained = torch.load(path, map_location="cpu", weights_only=True)["average"]
        for name, value in trained.items():
            target = name.replace("fusion.branch.", f"fusion.branches.{stage}.")
            is_branch = target != name
            if (is_branch or (stage == "optical" and ".neck." in name)) and target in state:
                if state[target].shape != value.shape:
                    raise SystemExit(f"{path}: {name} has shape {tuple(value.shape)}")
                state[target] = value
    network.load_state_dict(state)


def groups(stage: str, packs: Path, real_share: float) -> list[tuple[float, list[PackedImage]]]:
    """Simulated scenes, and real chips where the optical branch takes part."""
    simulated = [image for path in sorted((packs / "training").glob("*.pack")) for image in read_index(path)]
    simulated = [image for image in simulated if not is_held_out(image)]
    real = list(read_index(packs / "real_train.pack"))
    return {
        "optical": [(1 - real_share, simulated), (real_share, real)],
        "terrain": [(1.0, simulated)],
        "fused": [(1 - real_share, simulated), (real_share, real)],
    }[stage]


def is_held_out(image: PackedImage) -> bool:
    """Simulated scenes with seeds from 9000 on are for watching, not for training."""
    return int(image.path.stem) >= 9000


def held_out_samples(stage: str, packs: Path, spec: InputSpec) -> dict[str, list[Sample]]:
    """Fixed samples without augmentation: simulated quarters of scenes, and real chips."""
    options = SampleOptions()
    simulated = []
    for path in sorted((packs / "training").glob("9*.pack")):
        for image in read_index(path):
            windows = [
                Window(r, c, r + 256, c + 256) for r in range(0, 1024, 256) for c in range(0, 1024, 512)
            ]
            simulated += [make_sample(image.read(window), spec, options, None) for window in windows]
    chips = list(read_index(packs / "real_dev.pack"))[::4]
    real = [make_sample(chip.read(Window(0, 0, *chip.shape)), spec, options, None) for chip in chips]
    return {"simulated": simulated, "real": real} if stage != "terrain" else {"simulated": simulated}


def scores(network: SlumpNetwork, held_out: dict[str, list[Sample]]) -> dict[str, float]:
    """AP50 and best F1 at IoU 0.3 and 0.5 on each held-out set."""
    detector = MmDetector(network, device="cpu")
    result = {}
    for name, samples in held_out.items():
        hits, slumps = [], 0
        for sample, found in zip(samples, detector.detect([chip_of(s) for s in samples]), strict=True):
            hits += match_sample(found, sample)
            slumps += len(sample.masks)
        f1_30, threshold, precision, recall = best_f1(hits, slumps, 0.3)
        result |= {
            f"{name}_f1_30": f1_30,
            f"{name}_threshold": threshold,
            f"{name}_precision": precision,
            f"{name}_recall": recall,
            f"{name}_f1_50": best_f1(hits, slumps, 0.5)[0],
            f"{name}_ap50": average_precision(hits, slumps, 0.5),
        }
    print({key: round(value, 3) for key, value in result.items()}, flush=True)
    return result


if __name__ == "__main__":
    main()
