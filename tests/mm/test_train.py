from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from rtsmap.errors import OptionsError, RunError
from rtsmap.mm.packs import UNKNOWN_KIND
from rtsmap.mm.register import Target, build_network
from rtsmap.mm.samples import SampleOptions, SampleSource
from rtsmap.mm.train import DenseLoss, Ranks, TrainOptions, learning_rate, read_rows, seed_everything, train
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from tests.mm.labelled import packed

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))
TINY = {
    "embed_dim": 16,
    "stage_blocks": [1, 1, 1, 1],
    "fpn_channels": 16,
    "mask_channels": 16,
    "mask_convs": 1,
    "box_fc_channels": 32,
    "rois_per_chip": 16,
    "rpn_proposals": 30,
}


def fresh(directory, **changes):
    seed_everything(0)
    source = SampleSource([(1.0, packed(directory))], SPEC, SampleOptions(chip_px=64), seed=1)
    return build_network(TINY | changes, SPEC), source


class Stopped(Exception):  # noqa: N818
    pass


def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    options = TrainOptions(
        steps=4, batch_size=1, dense_only_steps=1, log_every=1, keep_every=2, warmup_steps=2
    )
    network, source = fresh(tmp_path)
    whole = train(network, source, options, tmp_path / "whole")

    def stop(step, _row):
        if step == 3:
            raise Stopped

    network, source = fresh(tmp_path)
    with pytest.raises(Stopped):
        train(network, source, options, tmp_path / "parts", on_step=stop)
    network, source = fresh(tmp_path)
    resumed = train(network, source, options, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_stop_while_held_out_chips_are_looked_at_loses_no_look(tmp_path):
    options = TrainOptions(steps=4, batch_size=1, dense_only_steps=4, keep_every=1, warmup_steps=2)
    looks = []

    def validate(network, step):
        looks.append(step)
        if looks == [1, 2]:
            raise Stopped
        return {"x": float(next(network.parameters()).sum())} if step != 3 else {}

    network, source = fresh(tmp_path)
    with pytest.raises(Stopped):
        train(network, source, options, tmp_path / "parts", validate=validate)
    network, source = fresh(tmp_path)
    train(network, source, options, tmp_path / "parts", validate=validate)
    assert looks == [1, 2, 2, 3, 4]
    rows = read_rows(tmp_path / "parts" / "validation.jsonl")
    network, source = fresh(tmp_path)
    train(network, source, options, tmp_path / "whole", validate=validate)
    assert rows == read_rows(tmp_path / "whole" / "validation.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4]


def test_gradient_checkpointing_trains_the_same_weights(tmp_path):
    trained = []
    for thrifty in (False, True):
        options = TrainOptions(steps=2, batch_size=1, warmup_steps=1, gradient_checkpointing=thrifty)
        network, source = fresh(tmp_path, drop_path=0.3)
        trained.append(train(network, source, options, tmp_path / f"run {thrifty}").state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, msg=name)


def test_processes_leave_alone_what_none_of_them_uses(tmp_path):
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    torch.multiprocessing.spawn(_averaged, (rendezvous, tmp_path), nprocs=2)
    for rank in range(2):
        means = torch.load(tmp_path / f"{rank}.pt")
        assert means["both.weight"].tolist() == [[1.5]]
        assert means["one.weight"].tolist() == [[1.0]]
        assert means["none.weight"] is None


def _averaged(rank: int, rendezvous: str, folder: Path) -> None:
    """Gradients of two processes: both use one layer, the second one another, and neither the last."""
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    layers = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("both", "one", "none")})
    loss = layers["both"](torch.full((1, 1), 1.0 + rank))
    (loss + layers["one"](torch.full((1, 1), 2.0)) if rank else loss).sum().backward()
    Ranks(rank, 2).average_gradients(layers, None)
    torch.save({name: p.grad for name, p in layers.named_parameters()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("device", "backend"), [("auto", "nccl"), ("cuda:1", "nccl"), ("cpu", "gloo")])
def test_processes_talk_as_their_device_can(monkeypatch, device, backend):
    asked = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", asked.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert Ranks.from_torchrun(device) == Ranks(0, 2)
    assert asked == [backend]


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path):
    network, source = fresh(tmp_path)
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(
        RunError, match=r"terrain, step 0: the loss .* not finite; the batch was image \d\. Look"
    ):
        train(network, source, TrainOptions(steps=1, batch_size=1, dense_only_steps=1), tmp_path / "terrain")


def test_the_pixels_of_ignored_ground_teach_nothing():
    torch.manual_seed(0)
    dense = DenseLoss(build_network(TINY, SPEC))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, :20, :20] = True
    target = Target(torch.tensor([[0.0, 0, 20, 20]]), mask)
    kinds = torch.full((1, 64, 64), UNKNOWN_KIND, dtype=torch.uint8)
    judged = torch.ones(1, 64, 64)
    judged[:, 32:] = 0
    seen, other = torch.randn(1, 16, 16, 16), torch.randn(1, 16, 16, 16)
    # the convolution in front of the loss looks one cell further
    other[:, :, :9] = seen[:, :, :9]
    told = []
    for where in (judged, torch.ones(1, 64, 64)):
        for dense._finest in (seen, other):
            told.append(dense([target], kinds, where).item())
    assert told[0] == told[1]
    assert abs(told[2] - told[3]) > 1e-3


def test_learning_rate_warms_up_and_falls():
    options = TrainOptions(steps=100, warmup_steps=10, lr=1.0)
    rates = [learning_rate(options, step) for step in range(100)]
    assert rates[0] < 0.2
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_any_seed_can_be_trained_with(tmp_path):
    for seed in (20261122, 2**62):
        network, source = fresh(tmp_path)
        options = TrainOptions(steps=1, batch_size=1, dense_only_steps=1, seed=seed)
        train(network, source, options, tmp_path / f"run {seed}")


def test_the_rate_in_the_log_is_that_of_the_heads(tmp_path):
    network, source = fresh(tmp_path)
    options = TrainOptions(
        steps=2, batch_size=1, dense_only_steps=2, log_every=1, warmup_steps=2, layer_decay=0.5
    )
    rates = []
    train(network, source, options, tmp_path / "run", on_step=lambda _, row: rates.append(row["lr"]))
    assert rates == [learning_rate(options, step) for step in range(2)]


def test_impossible_options_are_refused():
    with pytest.raises(OptionsError, match="precision"):
        TrainOptions(precision="fp8")
    with pytest.raises(OptionsError, match="dense_only_steps"):
        TrainOptions(dense_loss=0.0, dense_only_steps=3)
    for name in ("clip_norm", "lr"):
        for value in (0.0, -1.0, math.nan):
            with pytest.raises(OptionsError, match=name):
                TrainOptions(**{name: value})
    for name in ("weight_decay", "backbone_lr_factor", "dense_loss", "seed", "warmup_steps"):
        with pytest.raises(OptionsError, match=f"{name}=-1"):
            TrainOptions(**{name: -1})
    for name in ("ema_decay", "beta2"):
        with pytest.raises(OptionsError, match=f"{name}=1"):
            TrainOptions(**{name: 1.0})


@pytest.mark.parametrize("beta2", [0.98, 0.999])
def test_the_mean_of_squared_gradients_forgets_as_told(tmp_path, beta2):
    network, source = fresh(tmp_path)
    options = TrainOptions(steps=1, batch_size=1, dense_only_steps=1, beta2=beta2)
    train(network, source, options, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["optimizer"]
    first = state["state"][0]
    # after one step from nothing: squares of (1 - beta2), and means of a tenth, of the same gradient
    torch.testing.assert_close(first["exp_avg_sq"], (10 * first["exp_avg"]) ** 2 * (1 - beta2))
