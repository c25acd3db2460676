"""A convolutional pyramid trained on ImageNet that tells a small transformer what it has seen.

No multi-scale transformer of a few million weights is published with ImageNet weights; MobileNetV2
(Sandler et al. 2018, arXiv 1801.04381) is, and its maps have the strides of ours. Xu et al. 2022,
"ViT-Adapter" (arXiv 2205.08534), join a convolutional pyramid to a transformer in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rtsmap.nets.vision import torchvision

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)

_CUTS = (0, 4, 7, 14, 18)
"""Where torchvision's layers change stride: 4, 8, 16 and 32 are reached before these."""
_WIDTHS = (24, 32, 96, 320)


class ConvGuide(nn.Module):
    """MobileNetV2 whose four maps, projected, are added to those of a transformer.

    (B, in_chans, H, W) to maps (B, C, h, w) of the given `channels`, finest first. The projections start
    at zero, so an untrained guide changes nothing. The batch norms are folded into the convolutions:
    batches of a few chips would spoil their means. `colours` turns the input channels into the three
    that ImageNet's weights were trained on.
    """

    def __init__(self, in_chans: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.colours = nn.Conv2d(in_chans, 3, 1)
        self.stages = nn.ModuleList(_by_stride(torchvision.models.mobilenet_v2(weights=None)))
        joins = zip(_WIDTHS, channels, strict=True)
        self.joins = nn.ModuleList(nn.Conv2d(width, dim, 1, bias=False) for width, dim in joins)
        for join in self.joins:
            nn.init.zeros_(cast("Tensor", join.weight))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """What to add to each map."""
        features = self.colours(pixels)
        added: list[Tensor] = []
        for stage, join in zip(self.stages, self.joins, strict=True):
            features = stage(features)
            added.append(join(features))
        return added

    def take_imagenet(self, weights: Mapping[str, Tensor]) -> None:
        """Fill all but the projections from torchvision's `mobilenet_v2`; raises RuntimeError for others."""
        model = torchvision.models.mobilenet_v2(weights=None)
        model.load_state_dict(dict(weights))
        for stage, trained in zip(self.stages, _by_stride(model), strict=True):
            stage.load_state_dict(trained.state_dict())

    def take_colours(self, means: Sequence[float], sds: Sequence[float]) -> None:
        """Let the first three channels, normalised with these means and deviations (0..1), be ImageNet's."""
        weight, bias = self.colours.weight, cast("Tensor", self.colours.bias)
        nn.init.zeros_(weight)
        for channel, (mean, sd) in enumerate(zip(means, sds, strict=True)):
            weight.data[channel, channel] = sd / IMAGENET_SD[channel]
            bias.data[channel] = (mean - IMAGENET_MEAN[channel]) / IMAGENET_SD[channel]


def _by_stride(model: torchvision.models.MobileNetV2) -> list[nn.Sequential]:
    """Its layers up to stride 4, those from there to stride 8, and so on."""
    layers = list(folded(model.features))
    return [nn.Sequential(*layers[start:end]) for start, end in pairwise(_CUTS)]


def folded(layers: nn.Module) -> nn.Sequential:
    """The layers in evaluation, each batch norm folded into the convolution before it."""
    for part in list(layers.eval().modules()):
        for name, child in list(part.named_children()) if isinstance(part, nn.Sequential) else []:
            after = getattr(part, str(int(name) + 1), None)
            if isinstance(child, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                # the biases that torch makes here would never learn
                setattr(part, name, fuse_conv_bn_eval(child, after).requires_grad_())
                setattr(part, str(int(name) + 1), nn.Identity())
    return cast("nn.Sequential", layers.train())
