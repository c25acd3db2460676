from __future__ import annotations

import pytest

from rtsmap.errors import CardError, WeightsError
from rtsmap.mm.limits import check_size
from rtsmap.mm.register import NetworkConfig
from rtsmap.models import list_bundles, load_bundle


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embed_dim", 1 << 30),
        ("num_heads", 0),
        ("stage_blocks", [1, 1, 10**9, 1]),
        ("terrain.embed_dim", 10**6),
        ("enlarge", float("inf")),
        ("enlarge", float("nan")),
        ("mask_px", 10**7),
        ("anchor_px", [1.0] * 10**4),
        ("box_convs", 10**9),
        ("fusion.window", 4096),
        ("fusion.head_dim", 0),
        ("fusion.key_pool", 0),
    ],
)
def test_numbers_that_would_exhaust_memory_or_time_are_refused(key, value):
    with pytest.raises(CardError, match=key):
        NetworkConfig.from_mapping({key: value})


def test_numbers_of_a_rival_fusion_have_limits_too():
    with pytest.raises(CardError, match="reduction"):
        NetworkConfig.from_mapping({"fusion": "cbam", "fusion.reduction": 0})


def test_a_network_larger_than_its_weights_is_not_built():
    with pytest.raises(WeightsError, match="do not belong together"):
        check_size({"embed_dim": 512, "stage_blocks": [2, 3, 64, 3]}, 30_000_000)


def test_shipped_bundles_are_within_the_limits():
    for name in list_bundles():
        card = load_bundle(name)
        NetworkConfig.from_mapping(card.network)
        check_size(card.network, card.weights_bytes)
