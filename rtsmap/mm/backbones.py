"""The branches of a network as parts that are taken from elsewhere, frozen, or taught more slowly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate

from torch import Tensor

from rtsmap.mm.checkpoints import fill
from rtsmap.mm.register import SlumpNetwork
from rtsmap.nets.mvit import STAGES, MViT

BACKBONE = "detector.backbone."
FUSION = f"{BACKBONE}fusion."
_JOINT = re.compile(r"\.backbone\.fusion\.(?!branch)")
_LAYER = re.compile(
    re.escape(FUSION) + r"(branch|branches\.\w+)\.(?:(patch_embed)\.|blocks\.(\d+)\.|scale(\d)_norm)"
)


def branches_of(network: SlumpNetwork) -> dict[str, MViT]:
    """Backbones by modality; a backbone on stacked bands goes by the name of the leading one."""
    fusion = network.detector.backbone.fusion
    if hasattr(fusion, "branch"):
        return {network.spec.names[0]: fusion.branch}
    return {name: fusion.branches.branch(name) for name in network.spec.names}


def planes_of(network: SlumpNetwork) -> dict[str, list[int]]:
    """Input channels of the backbones that hold no band but its validity; modalities as in `branches_of`."""
    if not network.config.validity_plane:
        return {name: [] for name in branches_of(network)}
    bands = [len(modality.bands) for modality in network.spec.modalities]
    if hasattr(network.detector.backbone.fusion, "branch"):
        return {network.spec.names[0]: [count + place for place, count in enumerate(accumulate(bands))]}
    return {name: [count] for name, count in zip(network.spec.names, bands, strict=True)}


def freeze_backbones(network: SlumpNetwork, stages: int = STAGES) -> None:
    """Let the first `stages` stages of every backbone keep their weights; with all four, the norms too."""
    for branch in branches_of(network).values():
        frozen = [branch.patch_embed, *branch.blocks[: branch.ends[stages - 1] + 1]]
        if branch.guide is not None:
            frozen += [branch.guide.colours, *branch.guide.stages[:stages], *branch.guide.joins[:stages]]
        for part in [branch] if stages == STAGES else frozen:
            part.requires_grad_(requires_grad=False)


def recompute_backbones(network: SlumpNetwork) -> None:
    """Let the backbones keep less for the way back; see MViT."""
    for branch in branches_of(network).values():
        branch.recompute = True


def take_branch(
    network: SlumpNetwork, weights: Mapping[str, Tensor], modality: str, where: str, *, heads: bool
) -> int:
    """Copy a unimodal network's backbone into that of `modality`; gives the number of tensors.

    When the modality leads, the pyramid comes along, and with `heads` all that follows it.
    Raises WeightsError, naming `where`, when shapes disagree.
    """
    alone, here = f"{FUSION}branch.", f"{FUSION}branches.{modality}."
    if not hasattr(network.detector.backbone.fusion, "branches"):
        here = alone
    chosen = {here + n.removeprefix(alone): v for n, v in weights.items() if n.startswith(alone)}
    if modality == network.spec.names[0]:
        chosen |= {
            n: v for n, v in weights.items() if not n.startswith(BACKBONE) and (heads or ".neck." in n)
        }
    fill(network, chosen, where, partial=True)
    return len(chosen)


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """Factors of the learning rate by parameter: `decay` to the power of the layers from it to the heads.

    The last block of a backbone has one factor, the patch embedding below it all as many as there
    are blocks, plus one. Parameters of other parts are not named.
    """
    if decay == 1:
        return {}
    found = {name: match for name in names if (match := _LAYER.match(name))}
    blocks: dict[str, int] = {}
    for match in found.values():
        if match[3] is not None:
            blocks[match[1]] = max(blocks.get(match[1], 0), int(match[3]) + 1)
    return {name: decay ** (blocks[match[1]] - _layer(match, blocks)) for name, match in found.items()}


def is_of_branch(name: str) -> bool:
    """Whether a parameter belongs to a backbone; what joins the maps of several does not."""
    return ".backbone." in name and _JOINT.search(name) is None


def is_of_guide(name: str) -> bool:
    """Whether a parameter belongs to the pre-trained layers of a guide."""
    return ".guide.stages." in name


def _layer(match: re.Match[str], blocks: Mapping[str, int]) -> int:
    """-1 for the patch embedding, then the blocks; the norms of the maps count as the last block."""
    if match[2]:
        return -1
    return int(match[3]) if match[3] is not None else blocks[match[1]] - 1
