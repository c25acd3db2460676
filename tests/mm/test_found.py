from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from rtsmap.mm.found import SAME_IOU, Found, agreed

EVERYTHING = {"min_score": 0.0, "most": 1000}


def look(seed: int, count: int) -> Found:
    """Boxes crowded enough that many of two looks overlap, best score first, no two scores alike."""
    dice = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (count, 2), generator=dice) * 8 + torch.rand(count, 2, generator=dice) * 6
    sides = 16 + torch.rand(count, 2, generator=dice) * 8
    scores = torch.rand(count, generator=dice).sort(descending=True).values
    return Found(torch.cat([corners, corners + sides], 1), scores, torch.rand(count, 4, 4, generator=dice))


NOTHING = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 1, 1))
"""What the network says of a chip without slumps: its masks have no size."""


def one(score: float, box: tuple[float, ...] = (0, 0, 10, 10), inside: float = 1.0) -> Found:
    return Found(torch.tensor([box]).float(), torch.tensor([score]), torch.full((1, 2, 2), inside))


looks_of = st.lists(
    st.builds(look, st.integers(0, 999), st.integers(0, 12)), min_size=2, max_size=4, unique_by=id
)


def naive(looks: list[Found]) -> list[tuple[float, list[float]]]:
    """Score and box of each slump, by walking through all boxes one after the other."""
    seen = [
        (float(score), number, box)
        for number, found in enumerate(looks)
        for score, box in zip(found.scores, found.boxes, strict=True)
    ]
    seen.sort(key=lambda entry: -entry[0])
    slumps = []
    while seen:
        leader = seen.pop(0)
        members = [leader]
        for number in range(len(looks)):
            near = [entry for entry in seen if entry[1] == number != leader[1]]
            overlaps = [float(box_iou(leader[2][None], entry[2][None])) for entry in near]
            if overlaps and max(overlaps) >= SAME_IOU:
                members.append(near[overlaps.index(max(overlaps))])
                seen = [entry for entry in seen if entry is not members[-1]]
        better = sorted((score for score, _, _ in members), reverse=True)[: len(looks) // 2]
        weights = sum(score for score, _, _ in members)
        box = sum(score * box for score, _, box in members) / weights
        slumps.append((sum(better) / (len(looks) // 2), box.tolist()))
    return sorted(slumps, reverse=True)


@given(looks_of)
@settings(max_examples=60, deadline=None)
def test_agreement_is_that_of_a_walk_through_all_boxes(looks):
    found = agreed(looks, **EVERYTHING)
    wanted = naive(looks)
    assert len(found.scores) == len(found.boxes) == len(found.masks) == len(wanted)
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _ in wanted]))
    if wanted:
        torch.testing.assert_close(found.boxes, torch.tensor([box for _, box in wanted]), atol=1e-3, rtol=0)


@given(looks_of, st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_looks_does_not_matter(looks, dice):
    mixed = list(looks)
    dice.shuffle(mixed)
    first, second = (agreed(order, **EVERYTHING) for order in (looks, mixed))
    torch.testing.assert_close(first.scores, second.scores)


@given(st.integers(0, 999), st.sampled_from([2, 4]))
@settings(max_examples=20, deadline=None)
def test_looks_that_show_the_same_change_nothing(seed, count):
    # one box far from the next: within a look, boxes that overlap so much were one already
    found = look(seed, 6)
    found = Found(found.boxes + torch.arange(6)[:, None] * 100, found.scores, found.masks)
    joint = agreed([found] * count, **EVERYTHING)
    torch.testing.assert_close(joint.scores, found.scores)
    torch.testing.assert_close(joint.boxes, found.boxes)
    torch.testing.assert_close(joint.masks, found.masks)


def test_what_one_look_of_four_sees_counts_half():
    lonely = agreed([NOTHING, one(0.8), NOTHING, NOTHING], **EVERYTHING)
    assert lonely.scores.tolist() == torch.tensor([0.4]).tolist()
    seen_by_two = agreed([one(0.6), one(0.8), NOTHING, NOTHING], **EVERYTHING)
    torch.testing.assert_close(seen_by_two.scores, torch.tensor([0.7]))
    assert not len(agreed([NOTHING] * 4, **EVERYTHING).scores)


def test_boxes_and_masks_are_means_weighted_by_score():
    joint = agreed([one(0.3, (0, 0, 10, 10), 0.0), one(0.9, (0, 0, 14, 10), 1.0)], **EVERYTHING)
    torch.testing.assert_close(joint.boxes, torch.tensor([[0.0, 0.0, 13.0, 10.0]]))
    torch.testing.assert_close(joint.masks, torch.full((1, 2, 2), 0.75))
    torch.testing.assert_close(joint.scores, torch.tensor([0.9]))


def test_boxes_of_one_look_are_never_joined():
    pair = Found(
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11]]), torch.tensor([0.9, 0.8]), torch.ones(2, 2, 2)
    )
    assert len(agreed([pair, pair], **EVERYTHING).scores) == 2


def test_the_worst_are_left_out():
    looks = [look(1, 8), look(2, 8)]
    everything = agreed(looks, **EVERYTHING)
    threshold = float(everything.scores[4])
    assert (agreed(looks, min_score=threshold, most=1000).scores >= threshold).all()
    few = agreed(looks, min_score=0.0, most=3)
    torch.testing.assert_close(few.scores, everything.scores[:3])


def test_scores_of_nought_are_no_error():
    joint = agreed([one(0.0), one(0.0)], **EVERYTHING)
    assert joint.scores.tolist() == [0.0]
    assert torch.isfinite(joint.boxes).all()
