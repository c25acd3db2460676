"""Turns a finished training of train_starter.py into a model bundle.

    python examples/publish_starter.py RUN BUNDLE_FOLDER --score-threshold 0.5
    python examples/publish_starter.py RUN BUNDLE_FOLDER --stage terrain

`--stage optical` and `terrain` make bundles of one modality, to compare the fused one with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from train_starter import STAGES, stage_network

from rtsmap.mm.checkpoints import save_weights
from rtsmap.mm.register import build_network
from rtsmap.models import Score, write_bundle

DESCRIPTION = (
    "Starter model: Cascade Mask R-CNN on one small MViTv2 for optical and one for terrain bands, fused by "
    "residual cross-modality attention; the optical one is guided by a MobileNetV2 that began with ImageNet "
    "weights. Trained on a CPU in a few hours; sure of itself on simulated scenes, weak on real imagery: it "
    "finds a third of the slumps on chips that it never saw. Maps without an elevation model too."
)
ALONE = "The starter model's {} branch with heads of its own, to compare the fused one with."
SIMULATED = (
    "95 simulated tundra scenes (preset 'training' of rtsmap simulate; the scenes of benchmark-1 were never "
    "trained on) with their elevation models"
)
TRAINING_DATA = (
    f"{SIMULATED}, and 667 of the 756 published training chips of real thaw "
    "slumps (Yang et al. 2023, as released for the Cyber2A teaching material), without terrain. They are "
    "Maxar-derived pictures published for teaching, without a licence file; no picture is in this bundle. "
    "The optical guide began with torchvision's ImageNet-1k weights of MobileNetV2 (BSD-3)."
)
LICENCE = (
    "Research use only: the real training chips carry no licence, so weights trained on them are offered "
    "for research, without warranty. The code of rtsmap is Apache-2.0."
)


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--stage", choices=STAGES, default="fused")
    parser.add_argument("--version", default="0.1.0")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--chip-px", type=int, default=256)
    parser.add_argument("--overlap-px", type=int, default=64)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--scores", type=Path, help="JSON list of name, value, data, command")
    arguments = parser.parse_args()
    stage = arguments.stage
    spec, _ = STAGES[stage]
    config = {**stage_network(stage), "views": arguments.views}
    network = build_network(config, spec)
    state = torch.load(arguments.run / stage / "last.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state["average"])
    scores = json.loads(arguments.scores.read_text()) if arguments.scores else []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_weights(network, weights)
        card = write_bundle(
            arguments.bundle,
            weights=weights,
            network=config,
            spec=spec,
            name=arguments.bundle.name,
            version=arguments.version,
            description=DESCRIPTION if stage == "fused" else ALONE.format(stage),
            licence=LICENCE,
            training_data=TRAINING_DATA if stage != "terrain" else f"{SIMULATED}.",
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            chip_px=arguments.chip_px,
            overlap_px=arguments.overlap_px,
            score_threshold=arguments.score_threshold,
            scores=[Score(**score) for score in scores],
            overwrite=True,
        )
    print(f"{card.folder}: {card.parameters / 1e6:.2f} M parameters, {card.weights_bytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
