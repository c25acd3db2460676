"""Builds the network: our pyramid of modalities in front of mmdet's Cascade Mask R-CNN.

`build_network` takes the flat plain data of a bundle's model.json. Nothing of mmdet's configuration
system leaves this file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.errors import CardError
from rtsmap.mm.found import Found, agreed
from rtsmap.mm.limits import check_numbers
from rtsmap.mm.ops import load_mmdet
from rtsmap.mm.views import VIEWS, View, hindrance, viewed
from rtsmap.nets.fusion import FUSIONS, Inputs, fusion_options
from rtsmap.nets.mvit import GUIDES, STEMS, MViT
from rtsmap.nets.roi_align import RoIAlign
from rtsmap.nets.vision import torchvision
from rtsmap.rasters.bands import InputSpec

DEFAULT_FUSION = "residual_cross_attention"
BRANCH_KEYS = ("embed_dim", "num_heads", "stage_blocks", "window", "drop_path", "mlp_ratio", "stem", "guide")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Everything that shapes a network, as it stands in model.json. Widths are in channels.

    `enlarge` is the factor by which chips are resized before the network; `anchor_px` are the sides of
    the anchors in chip pixels, one for each level. `views` (1, 2 or 4) is how many views of a chip are
    looked at when slumps are sought. Backbone numbers of one modality are overridden by
    keys like "terrain.embed_dim", which end up in `branches`; keys like "fusion.window" are options of
    the fusion, `fusion_options`.
    """

    fusion: str = DEFAULT_FUSION
    embed_dim: int = 32
    num_heads: int = 1
    stage_blocks: tuple[int, ...] = (1, 1, 2, 1)
    window: int = 32
    drop_path: float = 0.0
    mlp_ratio: float = 4.0
    stem: str = "patches"
    guide: str = "none"
    patch_stride: int = 4
    table_px: int = 256
    validity_plane: bool = True
    branches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fusion_options: Mapping[str, Any] = field(default_factory=dict)
    enlarge: float = 1.0
    fpn_channels: int = 96
    anchor_px: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0, 256.0)
    finest_roi_px: int = 56
    box_convs: int = 0
    box_fc_channels: int = 256
    mask_convs: int = 3
    mask_channels: int = 96
    mask_px: int = 28
    rpn_convs: int = 1
    rpn_proposals: int = 300
    rois_per_chip: int = 128
    cascade_iou: tuple[float, ...] = (0.5, 0.6, 0.7)
    cascade_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    min_score: float = 0.05
    nms_iou: float = 0.5
    max_per_chip: int = 100
    views: int = 1

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise CardError(
                f"model.json: unknown fusion '{self.fusion}'; known: {', '.join(sorted(FUSIONS))}"
            )
        self._check_words()
        blocks = [self.stage_blocks, *(part.get("stage_blocks", (1,) * 4) for part in self.branches.values())]
        if any(len(one) != 4 or min(one) < 1 for one in blocks) or len(self.anchor_px) != 5:
            raise CardError(
                "model.json: wanted four stage_blocks of 1 or more and five anchor_px, "
                f"got {', '.join(map(str, blocks))} and {self.anchor_px}"
            )
        if len(self.cascade_iou) != len(self.cascade_weights) or not self.cascade_iou:
            raise CardError(
                "model.json: cascade_iou and cascade_weights must have the same length, at least 1"
            )
        if self.enlarge <= 0 or self.mask_px % 2 or self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise CardError(
                "model.json: wanted enlarge > 0, an even mask_px and embed_dim a multiple of num_heads, got "
                f"enlarge={self.enlarge}, mask_px={self.mask_px}, {self.embed_dim} / {self.num_heads}"
            )

    def _check_words(self) -> None:
        """Stem and guide of the network and of each branch."""
        everywhere = {"stem": self.stem, "guide": self.guide}
        parts = {"": everywhere} | {f"{name}.": numbers for name, numbers in self.branches.items()}
        for prefix, numbers in parts.items():
            for key, known in (("stem", STEMS), ("guide", GUIDES)):
                if numbers.get(key, known[0]) not in known:
                    raise CardError(
                        f"model.json: {prefix}{key} must be one of {', '.join(known)}, got {numbers[key]!r}"
                    )

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> NetworkConfig:
        """Read model.json's data; raises CardError on unknown keys and values of the wrong kind."""
        known = {f.name: str(f.type) for f in fields(cls) if f.name not in {"branches", "fusion_options"}}
        options = _fusion_option_kinds(config.get("fusion", DEFAULT_FUSION))
        values: dict[str, Any] = {}
        chosen: dict[str, Any] = {}
        branches: dict[str, dict[str, Any]] = {}
        for key, value in config.items():
            part, dot, number = key.rpartition(".")
            kinds = options if part == "fusion" else known
            if number not in (BRANCH_KEYS if dot and part != "fusion" else kinds):
                of_parts = [f"fusion.{name}" for name in options]
                of_parts += [f"<modality>.{name}" for name in BRANCH_KEYS]
                names = ", ".join([*sorted(known), *of_parts])
                raise CardError(f"model.json: unknown key '{key}'; known: {names}")
            place = chosen if part == "fusion" else branches.setdefault(part, {}) if dot else values
            place[number] = _typed(key, value, kinds[number])
        network = cls(**values, branches=branches, fusion_options=chosen)
        check_numbers(config)
        return network


def _fusion_option_kinds(fusion: Any) -> dict[str, str]:
    """Kinds of the options of a fusion by name; none when there is no such fusion."""
    if not isinstance(fusion, str) or fusion not in FUSIONS:
        return {}
    kinds = {name: type(default).__name__ for name, default in fusion_options(fusion).items()}
    return {name: "tuple[int, ...]" if kind == "tuple" else kind for name, kind in kinds.items()}


def _typed(key: str, value: Any, kind: str) -> Any:
    """`value` as the field wants it: lists become tuples, whole numbers may stand for floats."""
    if kind.startswith("tuple"):
        element = float if "float" in kind else int
        if isinstance(value, (list, tuple)) and all(isinstance(v, (int, element)) for v in value):
            return tuple(element(v) for v in value)
    elif kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif type(value).__name__ == kind:
        return value
    raise CardError(f"model.json: '{key}' must be {kind}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Target:
    """Truth of one chip: boxes (n, 4) x1 y1 x2 y2 in chip pixels, masks (n, H, W) bool.

    `ignore_boxes` mark ground where a detection is neither right nor wrong.
    """

    boxes: Tensor
    masks: Tensor
    ignore_boxes: Tensor | None = None


class SlumpNetwork(nn.Module):
    """Cascade Mask R-CNN over several modalities.

    `inputs` everywhere: modality name to (pixels (B, C, H, W) normalised, valid (B, H, W) bool).
    """

    def __init__(self, detector: nn.Module, config: NetworkConfig, spec: InputSpec) -> None:
        super().__init__()
        self.detector: Any = detector
        self.config = config
        self.spec = spec

    def pyramid(self, inputs: Inputs) -> list[Tensor]:
        """Fused feature maps, before the FPN."""
        maps: list[Tensor] = self.detector.backbone(enlarged(inputs, self.config.enlarge))
        return maps

    def loss(self, inputs: Inputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Parts of the training loss; their sum is what to minimise."""
        shape = self._shape(inputs)
        samples = [_sample(shape, target, self.config.enlarge) for target in targets]
        parts = self.detector.loss(enlarged(inputs, self.config.enlarge), samples)
        return {
            name: torch.stack(list(part)).sum() if isinstance(part, (list, tuple)) else part.sum()
            for name, part in parts.items()
            if "loss" in name
        }

    @torch.no_grad()
    def detect(self, inputs: Inputs) -> list[Found]:
        """Slumps of each chip."""
        shape = self._shape(inputs)
        count = len(next(iter(inputs.values()))[0])
        large = enlarged(inputs, self.config.enlarge)
        looks = [self._look(large, view, shape, count) for view in VIEWS[: self.config.views]]
        return [
            agreed(of_chip, self.config.min_score, self.config.max_per_chip)
            for of_chip in zip(*looks, strict=True)
        ]

    def _look(self, inputs: Inputs, view: View, shape: tuple[int, int], count: int) -> list[Found]:
        """What each chip shows in one view, on the chip itself."""
        shown = view.shape(shape)
        samples = [_sample(shown, None, self.config.enlarge) for _ in range(count)]
        results = self.detector.predict(viewed(inputs, view, self.spec), samples, rescale=False)
        looks = [_found(one.pred_instances) for one in results]
        return [
            Found(view.boxes(one.boxes, shown) / self.config.enlarge, one.scores, view.maps(one.masks))
            for one in looks
        ]

    def _shape(self, inputs: Inputs) -> tuple[int, int]:
        """(H, W) of the chips after enlarging."""
        height, width = next(iter(inputs.values()))[0].shape[-2:]
        return enlarged_shape(height, width, self.config.enlarge)


_NUDGE = 1 + 1e-9
"""Keeps 0.29 times 100 from being 28."""


def enlarged_shape(height: int, width: int, factor: float) -> tuple[int, int]:
    """Shape of a chip after enlarging: whole pixels only."""
    return int(height * factor * _NUDGE), int(width * factor * _NUDGE)


def enlarged(inputs: Inputs, factor: float) -> Inputs:
    """Chips resized by exactly `factor`, as boxes are, without the rest of a pixel at the lower right.

    Pixels are bilinear; one is valid where all it came from was.
    """
    if factor == 1:
        return inputs
    resized = {}
    for name, (pixels, valid) in inputs.items():
        mask = valid[:, None].to(pixels.dtype)
        known = torch.where(valid[:, None], pixels, torch.zeros_like(pixels))
        both = functional.interpolate(
            torch.cat([known, mask], 1),
            scale_factor=factor * _NUDGE,
            mode="bilinear",
            antialias=factor < 1,
            recompute_scale_factor=False,
        )
        resized[name] = (both[:, :-1], both[:, -1] > 0.999)
    return resized


def _sample(shape: tuple[int, int], target: Target | None, factor: float) -> Any:
    """Mmdet's view of one chip."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    meta = {"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "batch_input_shape": shape}
    sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0), "flip": False})
    if target is not None:
        boxes = target.boxes.float() * factor
        labels = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=target.masks)
        ignored = boxes.new_zeros(0, 4) if target.ignore_boxes is None else target.ignore_boxes * factor
        sample.ignored_instances = InstanceData(bboxes=ignored.float())
    return sample


def _found(instances: Any) -> Found:
    masks = instances.masks.float() if len(instances) else instances.scores.new_zeros(0, 1, 1)
    return Found(instances.bboxes, instances.scores, masks)


def build_network(config: Mapping[str, Any], spec: InputSpec) -> SlumpNetwork:
    """The network of a bundle: `config` is model.json's data, `spec` what it looks at.

    Raises CardError for a key or value that is not known, EngineError where mmdet is missing.
    """
    settings = NetworkConfig.from_mapping(config)
    unknown = sorted(set(settings.branches) - set(spec.names))
    if unknown:
        raise CardError(
            f"model.json: keys for modality {', '.join(unknown)}, but the card has {', '.join(spec.names)}"
        )
    if reason := hindrance(settings.views, spec):
        raise CardError(f"model.json: views {settings.views}: {reason}")
    register_parts()
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    with quiet_mmengine():
        detector = MODELS.build(ConfigDict(cascade_plan(settings, spec)))
        detector.init_weights()
    return SlumpNetwork(detector, settings, spec)


@contextmanager
def quiet_mmengine() -> Iterator[None]:
    """Mmengine logs each parameter that it initialises: only errors pass."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def make_fusion(config: NetworkConfig, bands: Mapping[str, int]) -> Any:
    """The fusion that `config` names, for modalities of `bands` channels each, the first one leading."""

    def make_branch(name: str, in_chans: int) -> MViT:
        numbers = {key: getattr(config, key) for key in BRANCH_KEYS} | dict(config.branches.get(name, {}))
        return MViT(in_chans=in_chans, patch_stride=config.patch_stride, table_px=config.table_px, **numbers)

    try:
        return FUSIONS[config.fusion](
            bands, make_branch, plane=config.validity_plane, **config.fusion_options
        )
    except ValueError as error:
        raise CardError(f"model.json: fusion '{config.fusion}': {error}") from error


@cache
def register_parts() -> None:
    """Make our parts known to mmdet's registry, once."""
    load_mmdet()
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.task_modules import MaxIoUAssigner
    from mmdet.registry import MODELS, TASK_UTILS
    from mmdet.structures.bbox import bbox_overlaps

    @MODELS.register_module(name="RtsmapPyramid")
    class Pyramid(nn.Module):
        """A fusion in the place of mmdet's backbone."""

        def __init__(self, config: NetworkConfig, bands: Mapping[str, int]) -> None:
            super().__init__()
            self.fusion = make_fusion(config, bands)

        def forward(self, inputs: Inputs) -> list[Tensor]:
            """Four maps, finest first."""
            maps: list[Tensor] = self.fusion(inputs)
            return maps

    @MODELS.register_module(name="RtsmapMaskHead")
    class BoxLocalMaskHead(FCNMaskHead):
        """mmdet's mask head, whose masks stay in their boxes; truth masks are in chip pixels."""

        def __init__(self, *, enlarge: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.enlarge = enlarge

        def get_targets(
            self, sampling_results: list[Any], batch_gt_instances: list[Any], rcnn_train_cfg: Any
        ) -> Tensor:
            """Truth masks (n, m, m) cut to the positive boxes, on the device."""
            targets = [
                mask_targets(
                    truth.masks,
                    sampled.pos_assigned_gt_inds,
                    sampled.pos_priors / self.enlarge,
                    rcnn_train_cfg.mask_size,
                )
                for sampled, truth in zip(sampling_results, batch_gt_instances, strict=True)
            ]
            return torch.cat(targets)

        def predict_by_feat(
            self, mask_preds: Sequence[Tensor], results_list: list[Any], *_: Any, **__: Any
        ) -> list[Any]:
            """Keep the probabilities (n, m, m), averaged over the stages, beside their boxes."""
            for masks, results in zip(mask_preds, results_list, strict=True):
                results.masks = masks[:, 0]
            return results_list

    @TASK_UTILS.register_module(name="RtsmapAssigner")
    class Assigner(MaxIoUAssigner):
        """mmdet's assigner, but ground to ignore never takes a slump its boxes, nor counts without truth."""

        def assign(
            self, pred_instances: Any, gt_instances: Any, gt_instances_ignore: Any = None, **kwargs: Any
        ) -> Any:
            """Background boxes that lie mostly on ignored ground are left out."""
            result = super().assign(pred_instances, gt_instances, None, **kwargs)
            if gt_instances_ignore is not None and len(gt_instances_ignore):
                shares = bbox_overlaps(pred_instances.priors, gt_instances_ignore.bboxes, mode="iof")
                ignored = shares.max(dim=1).values > self.ignore_iof_thr
                result.gt_inds[ignored & (result.gt_inds == 0)] = -1
            return result


def mask_targets(masks: Tensor, indexes: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut masks[indexes] (n, H, W) to their boxes (n, 4) and resample to (n, size, size), 0 or 1."""
    chosen = masks[indexes].float()[:, None]
    images = torch.arange(len(boxes), device=boxes.device, dtype=torch.float32)[:, None]
    rois = torch.cat([images, boxes.float()], dim=1)
    cut: Tensor = torchvision.ops.roi_align(chosen, rois, (size, size), 1.0, 0, aligned=True)
    return (cut[:, 0] >= 0.5).float()


def cascade_plan(config: NetworkConfig, spec: InputSpec) -> dict[str, Any]:
    """Mmdet's description of the whole detector."""
    widths = [config.embed_dim << stage for stage in range(4)]
    lead = config.branches.get(spec.names[0], {})
    if "embed_dim" in lead:
        widths = [int(lead["embed_dim"]) << stage for stage in range(4)]
    return {
        "type": "CascadeRCNN",
        "backbone": {
            "type": "RtsmapPyramid",
            "config": config,
            "bands": {modality.name: len(modality.bands) for modality in spec.modalities},
        },
        "neck": {"type": "FPN", "in_channels": widths, "out_channels": config.fpn_channels, "num_outs": 5},
        "rpn_head": _rpn_plan(config),
        "roi_head": _roi_plan(config),
        "train_cfg": _train_plan(config),
        "test_cfg": {
            "rpn": _proposal_plan(config),
            "rcnn": {
                "score_thr": config.min_score,
                "nms": {"type": "nms", "iou_threshold": config.nms_iou},
                "max_per_img": config.max_per_chip,
                "mask_thr_binary": 0.5,
            },
        },
    }


def _strides(config: NetworkConfig, count: int) -> list[int]:
    return [config.patch_stride << level for level in range(count)]


def _rpn_plan(config: NetworkConfig) -> dict[str, Any]:
    return {
        "type": "RPNHead",
        "in_channels": config.fpn_channels,
        "feat_channels": config.fpn_channels,
        "num_convs": config.rpn_convs,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "base_sizes": [side * config.enlarge for side in config.anchor_px],
            "scales": [1.0],
            "ratios": [0.5, 1.0, 2.0],
            "strides": _strides(config, 5),
        },
        "bbox_coder": _coder_plan((1.0, 1.0, 1.0, 1.0)),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1 / 9, "loss_weight": 1.0},
    }


def _coder_plan(sds: Sequence[float]) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(sds)}


def _roi_plan(config: NetworkConfig) -> dict[str, Any]:
    stages = range(len(config.cascade_iou))
    return {
        "type": "CascadeRoIHead",
        "num_stages": len(stages),
        "stage_loss_weights": list(config.cascade_weights),
        "bbox_roi_extractor": _extractor_plan(config, 7),
        "bbox_head": [_box_head_plan(config, stage) for stage in stages],
        "mask_roi_extractor": _extractor_plan(config, config.mask_px // 2),
        "mask_head": [_mask_head_plan(config) for _ in stages],
    }


def _extractor_plan(config: NetworkConfig, size: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": RoIAlign, "output_size": size, "sampling_ratio": 2},
        "out_channels": config.fpn_channels,
        "featmap_strides": _strides(config, 4),
        "finest_scale": config.finest_roi_px,
    }


def _box_head_plan(config: NetworkConfig, stage: int) -> dict[str, Any]:
    # Each stage refines boxes that are better already: its regression targets are smaller.
    shrink = (1.0, 0.5, 0.33)[min(stage, 2)]
    return {
        "type": "ConvFCBBoxHead",
        "num_shared_convs": config.box_convs,
        "num_shared_fcs": 2 if config.box_convs == 0 else 1,
        "conv_out_channels": config.fpn_channels,
        "norm_cfg": _group_norm(config.fpn_channels) if config.box_convs else None,
        "in_channels": config.fpn_channels,
        "fc_out_channels": config.box_fc_channels,
        "roi_feat_size": 7,
        "num_classes": 1,
        "reg_class_agnostic": True,
        "bbox_coder": _coder_plan([sd * shrink for sd in (0.1, 0.1, 0.2, 0.2)]),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
    }


def _mask_head_plan(config: NetworkConfig) -> dict[str, Any]:
    return {
        "type": "RtsmapMaskHead",
        "enlarge": config.enlarge,
        "num_convs": config.mask_convs,
        "in_channels": config.fpn_channels,
        "conv_out_channels": config.mask_channels,
        "num_classes": 1,
        "norm_cfg": _group_norm(config.mask_channels),
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    }


def _group_norm(channels: int) -> dict[str, Any]:
    """Group norm, since batches of one or two chips are too small for batch norm."""
    return {"type": "GN", "num_groups": math.gcd(channels, 32)}


def _proposal_plan(config: NetworkConfig) -> dict[str, Any]:
    return {
        "nms_pre": 2 * config.rpn_proposals,
        "max_per_img": config.rpn_proposals,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }


def _assigner_plan(positive: float, negative: float, lowest: float, *, low_quality: bool) -> dict[str, Any]:
    return {
        "type": "RtsmapAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": lowest,
        "match_low_quality": low_quality,
        "ignore_iof_thr": 0.5,
    }


def _sampler_plan(count: int, share: float, *, truth: bool) -> dict[str, Any]:
    return {
        "type": "RandomSampler",
        "num": count,
        "pos_fraction": share,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": truth,
    }


def _train_plan(config: NetworkConfig) -> dict[str, Any]:
    return {
        "rpn": {
            "assigner": _assigner_plan(0.7, 0.3, 0.3, low_quality=True),
            "sampler": _sampler_plan(256, 0.5, truth=False),
            # A third of the slumps are cut by the chip's border: anchors may cross it.
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposal_plan(config),
        "rcnn": [
            {
                "assigner": _assigner_plan(iou, iou, iou, low_quality=False),
                "sampler": _sampler_plan(config.rois_per_chip, 0.25, truth=True),
                "mask_size": config.mask_px,
                "pos_weight": -1,
                "debug": False,
            }
            for iou in config.cascade_iou
        ],
    }
