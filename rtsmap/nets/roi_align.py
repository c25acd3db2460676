"""RoIAlign as a sparse matrix product: torchvision's numbers, several times faster on a CPU.

torchvision's CPU gradient runs on one core with scattered additions: it took 40 % of a training step.
Each bin of a box is a weighted sum of a few feature vectors, so all bins together are one sparse
matrix times the features, and the gradient is its transpose.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from scipy import sparse
from torch import Tensor, nn

from rtsmap.nets.vision import torchvision

with warnings.catch_warnings():
    # torch announces once that sparse CSR is in beta; only matrix products are used of it.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))


class RoIAlign(nn.Module):
    """Features (B, C, H, W) under boxes `rois` (n, 5: image, x1, y1, x2, y2) to (n, C, size, size).

    Boxes are in chip pixels, `spatial_scale` brings them to features; pixel centres lie at half numbers
    ("aligned"). Each of size x size bins is the mean of sampling_ratio x sampling_ratio points.
    """

    def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int = 2) -> None:
        super().__init__()
        self.output_size = (output_size, output_size)
        self.spatial_scale, self.sampling_ratio = spatial_scale, sampling_ratio

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """The bins of each box."""
        if features.device.type == "cpu":
            size, samples = self.output_size[0], self.sampling_ratio
            return sparse_roi_align(features, rois, size, self.spatial_scale, samples)
        out: Tensor = torchvision.ops.roi_align(
            features,
            rois.to(features.dtype),
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            aligned=True,
        )
        return out


def sparse_roi_align(features: Tensor, rois: Tensor, size: int, spatial_scale: float, samples: int) -> Tensor:
    """RoIAlign by a sparse product, see `RoIAlign`."""
    batch, channels, height, width = features.shape
    rois = rois.detach().float()
    steps = (torch.arange(size * samples, device=rois.device) + 0.5) / (size * samples)
    start, end = rois[:, 1:3] * spatial_scale - 0.5, rois[:, 3:5] * spatial_scale - 0.5
    at = start[..., None] + (end - start)[..., None] * steps  # (n, 2: x y, size * samples)
    cols, across = _bin_cells(at[:, 0], width, size)
    rows, down = _bin_cells(at[:, 1], height, size)
    rows = rows + rois[:, 0].long()[:, None, None] * height
    # (n, size y, size x, cells y, cells x)
    cells = rows[:, :, None, :, None] * width + cols[:, None, :, None, :]
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    per_bin = cells.shape[3] * cells.shape[4]
    bounds = torch.arange(0, cells.numel() + 1, per_bin, device=rois.device)
    shape = (len(rois) * size * size, batch * height * width)
    matrix = torch.sparse_csr_tensor(bounds, cells.flatten(), weights.flatten(), shape)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    bins: Tensor = SparseProduct.apply(matrix, table)
    return bins.reshape(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _bin_cells(at: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Cells beside the sampling points of each bin and their weights, both (n, size, 2 * samples).

    Points up to one cell outside take the border cell and those beyond count as zero, as in detectron2.
    """
    inside = (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor()
    upper = (at - low)[..., None]
    weights = torch.cat([1 - upper, upper], dim=-1) * inside[..., None]
    low = low.long()
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1)
    shape = (len(at), size, -1)
    return cells.reshape(shape), weights.reshape(shape) * (size / at.shape[1])


class SparseProduct(torch.autograd.Function):
    """A constant sparse matrix times a table (rows, C), with the gradient for the table."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, table: Tensor) -> Tensor:
        """Product in single precision, given back in the table's."""
        ctx.matrix = matrix
        with torch.autocast("cpu", enabled=False):
            return (matrix @ table.float()).to(table.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """The transposed product."""
        with torch.autocast("cpu", enabled=False):
            return None, (transposed(ctx.matrix) @ grad.float()).to(grad.dtype)


def transposed(matrix: Tensor) -> Tensor:
    """The transpose of a sparse CSR matrix (rows, cols), as CSR (cols, rows).

    scipy counts where torch's `to_sparse_csr` sorts, in a seventh of its time.
    """
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    columns = sparse.csr_array(parts, shape=matrix.shape).tocsc()
    bounds, cells, weights = map(torch.from_numpy, (columns.indptr, columns.indices, columns.data))
    return torch.sparse_csr_tensor(bounds, cells, weights, (matrix.shape[1], matrix.shape[0]))
