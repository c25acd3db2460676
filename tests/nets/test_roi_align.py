from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsmap.nets.roi_align import RoIAlign, transposed


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-40, 120, width=32)] * 4), min_size=1, max_size=6),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0.25, 0.5]),
)
def test_equals_torchvision_with_boxes_in_across_and_outside_the_map(corners, samples, scale):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 17, 12, generator=generator, dtype=torch.float64).float()
    boxes = torch.tensor([[i % 2, min(a, c), min(b, d), max(a, c), max(b, d)]
                          for i, (a, b, c, d) in enumerate(corners)])  # fmt: skip
    wanted = torchvision.ops.roi_align(features, boxes, 7, scale, samples, aligned=True)
    got = RoIAlign(7, scale, samples)(features, boxes)
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [7, 14])
def test_gradient_equals_torchvisions(size):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * 60 - 8
    boxes = torch.cat([torch.arange(40)[:, None] % 3, corner, corner + 40], dim=1)
    weights = torch.randn(40, 5, size, size, generator=generator)
    gradients = []
    for align in (
        RoIAlign(size, 0.25, 2),
        lambda f, b: torchvision.ops.roi_align(f, b, size, 0.25, 2, aligned=True),
    ):
        features = torch.randn(3, 5, 20, 18, generator=generator.manual_seed(1), requires_grad=True)
        (align(features, boxes) * weights).sum().backward()
        gradients.append(features.grad)
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)


def test_works_under_autocast():
    features = torch.randn(1, 4, 8, 8, requires_grad=True)
    boxes = torch.tensor([[0.0, 1.0, 2.0, 20.0, 30.0]])
    with torch.autocast("cpu", torch.bfloat16):
        bins = RoIAlign(7, 0.25)((features * 1).bfloat16(), boxes)
        bins.sum().backward()
    assert bins.dtype == torch.bfloat16
    assert features.grad is not None


def test_the_transpose_is_torchs():
    generator = torch.Generator().manual_seed(0)
    matrix = (
        torch.rand(9, 6, generator=generator) * (torch.rand(9, 6, generator=generator) > 0.6)
    ).to_sparse_csr()
    got = transposed(matrix)
    assert got.layout == torch.sparse_csr
    assert torch.equal(got.to_dense(), matrix.to_dense().T)
