from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from rtsmap.errors import EngineError, GridMismatchError, OptionsError
from rtsmap.instances.detections import Side
from rtsmap.mm import detector as detector_module
from rtsmap.mm.checkpoints import save_weights
from rtsmap.mm.detector import MmDetector, load_detector, place_mask, resolve_device, stack
from rtsmap.mm.found import Found
from rtsmap.mm.ops import load_mmdet
from rtsmap.models import write_bundle
from rtsmap.rasters.chips import Chip, Layer
from rtsmap.rasters.tiling import Tile, Window
from tests.mm.tiny import CONFIG, SPEC, tiny_network


def chip(index=0, shape=(64, 64), corner=(100, 200), seed=0, *, terrain=True):
    rng = np.random.default_rng([seed, index])
    read = Window(corner[0], corner[1], corner[0] + shape[0], corner[1] + shape[1])
    optical = rng.normal(95, 25, (3, *shape)).clip(1, 254).astype(np.float32)
    relief = rng.normal(5, 5, (3, *shape)).astype(np.float32)
    layers = {
        "optical": Layer(optical, np.ones(shape, np.bool_)),
        "terrain": Layer(relief, np.full(shape, terrain)),
    }
    grid = GeoBox.from_bbox((0, 0, shape[1] * 4, shape[0] * 4), "EPSG:3413", resolution=4)
    return Chip(layers, grid, Tile(index, read, read))


def generous(**changes):
    """A network whose detections all pass, so that there is something to compare."""
    return tiny_network(min_score=0.0, max_per_chip=5, **changes)


@dataclass
class Answers:
    """Stands for a network: the same answer for each chip, and a memory of a few chips."""

    found: Found
    spec: object = SPEC
    memory: int = 100
    error: BaseException | None = None

    def __post_init__(self):
        self.batches = []

    def to(self, *_where, **_how):
        return self

    eval = property(lambda self: lambda: self)

    def detect(self, inputs):
        count = len(inputs["optical"][0])
        self.batches.append(count)
        if count > self.memory:
            raise self.error
        return [self.found] * count


def answer(boxes, scores, masks):
    return Found(torch.tensor(boxes).float(), torch.tensor(scores).float(), torch.as_tensor(masks).float())


ONE = answer([[10, 20, 30, 44]], [0.9], torch.ones(1, 28, 28))


@settings(max_examples=80, deadline=None)
@given(*[st.floats(-20, 90, width=32)] * 2, *[st.floats(0.5, 80, width=32)] * 2, st.integers(0, 9))
def test_box_local_masks_equal_mmdets_full_paste(x1, y1, width, height, seed):
    load_mmdet()
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    mask = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    box = torch.tensor([[x1, y1, x1 + width, y1 + height]])
    full, _ = _do_paste_mask(mask, box, 60, 70, skip_empty=False)
    placed = place_mask(mask[0, 0].numpy(), box[0].numpy(), (60, 70))
    wanted = np.zeros((60, 70))
    got = np.zeros((60, 70))
    if placed is not None:
        (row, col), pixels = placed
        inside = slice(row, row + pixels.shape[0]), slice(col, col + pixels.shape[1])
        got[inside], wanted[inside] = pixels / 255, full[0].numpy()[inside]
    np.testing.assert_allclose(got, wanted, atol=0.51 / 255 + 1e-4)
    # what mmdet's paste leaves outside the box's own pixels never counts as slump
    outside = full[0].numpy().copy()
    outside[wanted > 0] = 0
    assert outside.max() < 0.5 + 1e-6


def test_detections_lie_on_the_grid_and_know_sides_and_modalities():
    masks = torch.ones(3, 28, 28)
    boxes = [[10, 20, 30, 44], [0, 0, 64, 5], [50, 50, 64, 64]]
    one = chip()
    one.layers["terrain"].valid[:, :20] = False
    one.layers["terrain"].valid[:6] = False
    (found,) = MmDetector(Answers(answer(boxes, [0.9, 0.8, 0.7], masks)), device="cpu").detect([one])
    assert [d.window for d in found] == [
        Window(120, 210, 144, 230),
        Window(100, 200, 105, 264),
        Window(150, 250, 164, 264),
    ]
    assert [d.sides for d in found] == [
        Side.NONE,
        Side.TOP | Side.LEFT | Side.RIGHT,
        Side.BOTTOM | Side.RIGHT,
    ]
    assert [d.modalities for d in found] == [("optical", "terrain"), ("optical",), ("optical", "terrain")]
    assert [round(d.score, 3) for d in found] == [0.9, 0.8, 0.7]


def test_ground_that_no_modality_saw_is_never_part_of_a_slump():
    one = chip()
    one.layers["optical"].valid[:, 20:] = False
    one.layers["terrain"].valid[:, 30:] = False
    boxes = [[10, 20, 50, 44], [40, 0, 60, 20]]
    (found,) = MmDetector(Answers(answer(boxes, [0.9, 0.8], torch.ones(2, 28, 28))), device="cpu").detect(
        [one]
    )
    (cut,) = found
    assert cut.window == Window(120, 210, 144, 230)
    assert cut.modalities == ("optical", "terrain")


def test_masks_are_cropped_softly_and_empty_ones_dropped():
    mask = torch.zeros(3, 28, 28)
    mask[0, 7:21, 7:21] = 0.9  # the middle half
    mask[1] = 0.4  # nowhere likely
    boxes = [[0, 0, 56, 56], [0, 0, 56, 56], [200, 200, 210, 210]]
    (found,) = MmDetector(Answers(answer(boxes, [0.9, 0.8, 0.7], mask)), device="cpu").detect([chip()])
    assert len(found) == 1
    assert found[0].window == Window(114, 214, 142, 242)
    assert (found[0].mask >= 128).mean() > 0.9


def test_chips_share_batches_by_shape_and_answers_keep_the_order():
    network = Answers(ONE)
    chips = [chip(i, (64, 64 if i % 2 else 48)) for i in range(7)]
    found = MmDetector(network, device="cpu", batch_size=2).detect(chips)
    assert [d[0].tile for d in found] == list(range(7))
    assert sorted(network.batches) == [1, 2, 2, 2]


def test_neither_order_nor_batch_nor_neighbours_change_an_answer():
    detector = MmDetector(generous(), device="cpu", batch_size=4)
    chips = [chip(i, shape) for i, shape in enumerate([(64, 64), (40, 70), (64, 64), (33, 35)])]
    together = detector.detect(chips)
    alone = [detector.detect([one])[0] for one in chips]
    backwards = detector.detect(chips[::-1])[::-1]
    assert all(together)
    for others in (alone, backwards):
        for mine, theirs in zip(together, others, strict=True):
            assert_same(mine, theirs)
    for mine, theirs in zip(together, detector.detect(chips), strict=True):
        assert_same(mine, theirs, tolerance=0)


def assert_same(mine, theirs, tolerance=1):
    assert [d.window for d in mine] == [d.window for d in theirs]
    np.testing.assert_allclose([d.score for d in mine], [d.score for d in theirs], atol=tolerance * 1e-4)
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(a.mask.astype(int) - b.mask).max() <= tolerance


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 GB")]
)
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(error):
    network = Answers(ONE, memory=2, error=error)
    detector = MmDetector(network, device="cpu", batch_size=8, lanes=1)
    found = detector.detect([chip(i) for i in range(16)])
    assert [d[0].tile for d in found] == list(range(16))
    assert network.batches == [8, 4, *[2] * 8]
    assert detector.halvings == 2
    assert detector.batch_size == 2


def test_lanes_that_run_out_of_memory_together_halve_once_and_lose_nothing():
    network = Answers(ONE, memory=2, error=torch.OutOfMemoryError("CUDA out of memory"))
    detector = MmDetector(network, device="cpu", batch_size=4, lanes=3)
    found = detector.detect([chip(i) for i in range(24)])
    assert [d[0].tile for d in found] == list(range(24))
    assert (detector.halvings, detector.batch_size) == (1, 2)
    assert set(network.batches) <= {1, 2, 4}


def test_any_number_of_lanes_gives_the_same_answer_to_the_last_bit():
    network = generous()
    chips = [chip(i, shape) for i, shape in enumerate([(64, 64), (40, 70)] * 6)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, a single lane shares out each operation
    try:
        one, three = (MmDetector(network, device="cpu", batch_size=2, lanes=n).detect(chips) for n in (1, 3))
    finally:
        torch.set_num_threads(before)
    assert all(one)
    for mine, theirs in zip(one, three, strict=True):
        assert_same(mine, theirs, tolerance=0)


def test_batches_of_a_shape_are_of_about_the_same_size_so_that_lanes_end_together():
    network = Answers(ONE)
    MmDetector(network, device="cpu", batch_size=4, lanes=1).detect([chip(i) for i in range(9)])
    assert network.batches == [3, 3, 3]


def test_calls_may_overlap_and_answer_as_one_after_the_other():
    detector = MmDetector(generous(), device="cpu", batch_size=2, lanes=3)
    asked = [[chip(i, shape) for i in range(4)] for shape in ((64, 64), (40, 70), (33, 35))]
    with ThreadPoolExecutor(len(asked)) as callers:
        together = list(callers.map(detector.detect, asked))
    for chips, found in zip(asked, together, strict=True):
        for mine, theirs in zip(found, detector.detect(chips), strict=True):
            assert_same(mine, theirs, tolerance=0)


def test_a_call_that_nobody_waits_for_ends_after_the_batch_in_hand():
    network = Answers(ONE)
    detector = MmDetector(network, device="cpu", batch_size=1, lanes=2)
    answers = network.detect

    def slow(inputs):
        detector.give_up()
        return answers(inputs)

    network.detect = slow
    with pytest.raises(KeyboardInterrupt):
        detector.detect([chip(i) for i in range(50)])
    assert len(network.batches) <= 2
    network.detect = answers
    assert len(detector.detect([chip()])) == 1


def test_when_one_lane_fails_the_others_stop_and_torch_has_its_threads_again():
    network = Answers(ONE, memory=0, error=RuntimeError("shapes disagree"))
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes disagree"):
        MmDetector(network, device="cpu", batch_size=1, lanes=2).detect([chip(i) for i in range(50)])
    assert len(network.batches) <= 2
    assert torch.get_num_threads() == before


def test_a_chip_that_never_fits_is_named():
    network = Answers(ONE, memory=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(EngineError, match="a single chip of 64 x 64 pixels does not fit"):
        MmDetector(network, device="cpu").detect([chip()])


def test_other_errors_pass():
    network = Answers(ONE, memory=0, error=RuntimeError("shapes disagree"))
    with pytest.raises(RuntimeError, match="shapes disagree"):
        MmDetector(network, device="cpu").detect([chip()])


def test_values_that_are_not_finite_count_as_missing():
    dirty, clean = chip(), chip()
    dirty.layers["optical"].pixels[1, 5:9, 7] = np.nan
    dirty.layers["terrain"].pixels[0, 3, 3] = np.inf
    clean.layers["optical"].valid[5:9, 7] = False
    inputs, wanted = stack([dirty], SPEC, "cpu"), stack([clean], SPEC, "cpu")
    assert torch.equal(inputs["optical"][1], wanted["optical"][1])
    assert torch.equal(inputs["optical"][0], wanted["optical"][0])
    assert all(torch.isfinite(pixels).all() for pixels, _ in inputs.values())
    # beyond a band's range is still data: it is clipped, to 50 m over the circle's mean
    assert inputs["terrain"][1].all()
    assert inputs["terrain"][0][0, 0, 3, 3] == 50 / 3


def test_no_chips_and_no_detections():
    detector = MmDetector(tiny_network(min_score=0.99), device="cpu")
    assert detector.detect([]) == []
    assert detector.detect([chip()]) == [[]]


def test_a_missing_layer_is_named():
    one = chip()
    lacking = Chip({"optical": one.layers["optical"]}, one.geobox, one.tile)
    with pytest.raises(GridMismatchError, match="no layer 'terrain', only: optical"):
        MmDetector(generous(), device="cpu").detect([lacking])


def test_a_bundle_detects_as_the_network_it_was_written_from(tmp_path):
    network = generous()
    save_weights(network, tmp_path / "weights.safetensors", half=False)
    card = write_bundle(
        tmp_path / "bundle",
        weights=tmp_path / "weights.safetensors",
        network={**CONFIG, "min_score": 0.0, "max_per_chip": 5},
        spec=SPEC,
        name="tiny",
        version="1",
        description="for a test",
        licence="none",
        training_data="nothing",
        parameters=1,
        chip_px=64,
        overlap_px=16,
    )
    chips = [chip(0), chip(1, terrain=False)]
    wanted = MmDetector(network, device="cpu").detect(chips)
    assert all(wanted)
    for mine, theirs in zip(load_detector(card, "cpu").detect(chips), wanted, strict=True):
        assert_same(mine, theirs, tolerance=0)


def test_devices_and_precisions_that_do_not_exist_are_refused():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in {"cpu", "cuda"}
    with pytest.raises(EngineError, match="device 'quantum'"):
        resolve_device("quantum")
    with pytest.raises(OptionsError, match="precision 'fp8'"):
        MmDetector(Answers(ONE), device="cpu", precision="fp8")
    with pytest.raises(OptionsError, match="fp16 on a CUDA device"):
        MmDetector(Answers(ONE), device="cpu", precision="fp16")
    for wrong in ({"batch_size": 0}, {"threads": 0}, {"lanes": 0}):
        with pytest.raises(OptionsError, match="must be positive"):
            MmDetector(Answers(ONE), device="cpu", **wrong)


def test_without_a_batch_size_one_is_found_and_the_search_is_no_shortage(monkeypatch):
    monkeypatch.setattr(detector_module, "_ON_CPU", 8)
    network = Answers(ONE, memory=2, error=torch.OutOfMemoryError("CUDA out of memory"))
    detector = MmDetector(network, device="cpu")
    detector.detect([chip(i) for i in range(9)])
    assert (detector.batch_size, detector.halvings) == (2, 0)
    network.memory = 1
    detector.detect([chip(i) for i in range(2)])
    assert (detector.batch_size, detector.halvings) == (1, 1)


def test_features_in_bf16_are_those_in_fp32_but_for_rounding(caplog):
    network, chips = generous(), [chip(i) for i in range(2)]
    inputs = stack(chips, SPEC, "cpu")
    maps = {}
    for precision in ("fp32", "bf16"):
        detector = MmDetector(network, device="cpu", precision=precision)
        with torch.inference_mode(), detector._autocast():
            maps[precision] = [level.float() for level in network.pyramid(inputs)]
    for exact, rounded in zip(maps["fp32"], maps["bf16"], strict=True):
        assert 0 < (exact - rounded).norm() < 0.05 * exact.norm()
    warned = any("does not compute in bf16" in record.message for record in caplog.records)
    assert warned != detector_module._computes_in_bf16()


def test_a_compiled_network_finds_the_same(monkeypatch):
    chips = [chip()]  # of the size it was compiled for: another takes as long again
    wanted = MmDetector(generous(), device="cpu").detect(chips)
    # all of torch's compiler but the one that takes minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = MmDetector(generous(), device="cpu", compiled=True).detect(chips)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_same(mine, theirs)


def test_what_cannot_be_compiled_is_said_at_once(monkeypatch):
    def refuse(_module):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(EngineError, match="no C\\+\\+ compiler; leave out --compile"):
        MmDetector(generous(), device="cpu", compiled=True)
