"""The training loop, read top to bottom: draw, forward, check the loss is finite, step, log, keep.

Every sample is a function of (seed, number), so a run that is killed and resumed from its last
checkpoint draws the same chips as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.errors import OptionsError, RunError
from rtsmap.mm.backbones import is_of_branch, is_of_guide, layer_factors, recompute_backbones
from rtsmap.mm.batches import collate, stack_judged, stack_kinds
from rtsmap.mm.packs import KINDS, UNKNOWN_KIND
from rtsmap.mm.register import SlumpNetwork, Target
from rtsmap.mm.samples import Sample, SampleSource
from rtsmap.mm.writing import written_whole

_SLUMP_WEIGHT = 5.0
"""Slumps cover about a twentieth of a chip; unweighted, predicting none is a comfortable answer."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Numbers of one training.

    `lr` is reached after `warmup_steps` and falls to a twentieth along a cosine, or with the `schedule`
    'step' by ten at each share `step_at` of the steps. AdamW takes the mean of squared gradients over about
    1 / (1 - beta2) steps. `backbone_lr_factor` scales the rate for the branches,
    `layer_decay` once more for each layer of a branch below its end, and `guide_lr_factor` for the layers
    of a guide, which know ImageNet already. A step sees `batch_size` samples
    `accumulate` times. `ema_decay` averages weights over about 1 / (1 - decay) steps.
    `dense_loss` weighs a per-pixel slump loss on the finest pyramid level, which teaches a network
    without pre-training much faster than boxes alone; for the first `dense_only_steps` it is the only loss,
    and branches and pyramid learn at half the cost. `precision` is 'fp32' or 'bf16'.
    With `gradient_checkpointing` the blocks of the backbones are computed twice instead of kept in memory.
    """

    steps: int = 4000
    batch_size: int = 4
    lr: float = 4e-4
    backbone_lr_factor: float = 1.0
    guide_lr_factor: float = 0.25
    weight_decay: float = 0.05
    warmup_steps: int = 200
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    dense_loss: float = 0.5
    dense_only_steps: int = 0
    precision: str = "fp32"
    log_every: int = 20
    keep_every: int = 250
    seed: int = 0
    accumulate: int = 1
    schedule: str = "cosine"
    step_at: tuple[float, ...] = (0.778, 0.926)
    layer_decay: float = 1.0
    gradient_checkpointing: bool = False
    beta2: float = 0.98

    def __post_init__(self) -> None:
        if self.precision not in {"fp32", "bf16"}:
            raise OptionsError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}")
        if self.schedule not in {"cosine", "step"}:
            raise OptionsError(f"schedule must be 'cosine' or 'step', got {self.schedule!r}")
        if not 0 < self.layer_decay <= 1 or not all(0 < share < 1 for share in self.step_at):
            raise OptionsError(
                "wanted layer_decay in 0..1 and each of step_at between 0 and 1, "
                f"got {self.layer_decay} and {list(self.step_at)}"
            )
        if self.dense_only_steps and not self.dense_loss:
            raise OptionsError("dense_only_steps needs dense_loss > 0")
        self._check_numbers()

    def _check_numbers(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "log_every", "keep_every", "lr", "clip_norm")
        wrong = [f"{name}={getattr(self, name)}" for name in counts if not 0 < getattr(self, name) < math.inf]
        if wrong:
            raise OptionsError(f"must be positive: {', '.join(wrong)}")
        rates = ("backbone_lr_factor", "guide_lr_factor", "weight_decay", "dense_loss")
        least_0 = (*rates, "warmup_steps", "dense_only_steps", "seed")
        wrong = [
            f"{name}={getattr(self, name)}" for name in least_0 if not 0 <= getattr(self, name) < math.inf
        ]
        below_1 = ("ema_decay", "beta2")
        wrong += [f"{name}={getattr(self, name)}" for name in below_1 if not 0 <= getattr(self, name) < 1]
        if wrong:
            raise OptionsError(
                f"must not be negative, and {' and '.join(below_1)} below 1: {', '.join(wrong)}"
            )


def train(
    network: SlumpNetwork,
    source: SampleSource,
    options: TrainOptions,
    directory: Path,
    *,
    device: str = "cpu",
    ranks: Ranks | None = None,
    validate: Callable[[SlumpNetwork, int], Mapping[str, float]] | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    tick: Callable[[int], None] | None = None,
) -> SlumpNetwork:
    """Train `network` in place; keep checkpoints and a log in `directory`; return the averaged copy.

    Parameters that do not require gradients stay as they are, and so do parts made of such parameters
    only, which run as in evaluation. Under torchrun each process draws samples of its own and gradients
    are averaged; the first process writes. Resumes from `directory/last.pt` when it is there. `on_step` is
    told every row of the log, `tick` the number of steps done. Raises RunError when the loss is not
    finite, with the names of the batch's images.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ranks = ranks or Ranks()
    rest(network.to(device).train())
    average = Average(network, options.ema_decay)
    if options.gradient_checkpointing:
        recompute_backbones(network)
    dense = DenseLoss(network).to(device) if options.dense_loss else None
    optimizer = torch.optim.AdamW(
        _parameter_groups(network, dense, options), lr=options.lr, betas=(0.9, options.beta2), fused=True
    )
    state = TrainState(network, dense, average, optimizer)
    first = state.load(directory / "last.pt", device)
    if not ranks.rank:
        for name in ("log.jsonl", "validation.jsonl"):
            drop_rows_after(directory / name, first)
    record = _Record(directory, options, state, StepLog(directory / "log.jsonl", first))
    if first and not ranks.rank:
        # a stop may have come between a checkpoint and the look that belongs to it
        record.look(first, validate)
    for step, samples in _batches(source, options, first, ranks):
        seed_everything((options.seed * 1_000_003 + step) * ranks.count + ranks.rank)
        _set_lr(optimizer, options, step)
        optimizer.zero_grad(set_to_none=True)
        place = f"{directory}, step {step}"
        values = _learn(network, dense, samples, options, place, dense_only=step < options.dense_only_steps)
        ranks.average_gradients(network, dense)
        norm = nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
        _check_finite(norm, f"{place}: the gradient", samples)
        optimizer.step()
        average.update(network)
        if not ranks.rank:
            record.add(step + 1, {**values, "norm": norm.item()}, tick, on_step, validate)
    if dense is not None:
        dense.detach()
    return average.network


def _learn(
    network: SlumpNetwork,
    dense: DenseLoss | None,
    samples: Sequence[Sample],
    options: TrainOptions,
    place: str,
    *,
    dense_only: bool,
) -> dict[str, float]:
    """Add up the gradients of the step's batches; gives the means of their losses."""
    device = str(next(network.parameters()).device)
    values: dict[str, float] = {}
    for start in range(0, len(samples), options.batch_size):
        part = samples[start : start + options.batch_size]
        with _autocast(options, device):
            losses = _losses(network, dense, part, device, dense_only=dense_only)
            if dense is not None:
                losses["loss_dense"] = options.dense_loss * losses["loss_dense"]
        total = torch.stack([value.float() for value in losses.values()]).sum()
        for name, value in {"loss": total, **losses}.items():
            values[name] = values.get(name, 0.0) + value.item() / options.accumulate
        _check_finite(total, f"{place}: the loss {values}", part)
        (total / options.accumulate).backward()
    return values


def _check_finite(value: Tensor, what: str, samples: Sequence[Sample]) -> None:
    """Stop before a broken step spoils the weights; says which images were in it."""
    if not torch.isfinite(value):
        names = ", ".join(sample.name for sample in samples)
        raise RunError(
            f"{what} is not finite; the batch was {names}. Look at these images; where they are sound, train "
            "anew with a lower lr or clip_norm"
        )


def _losses(
    network: SlumpNetwork,
    dense: DenseLoss | None,
    samples: Sequence[Sample],
    device: str,
    *,
    dense_only: bool,
) -> dict[str, Tensor]:
    inputs, targets = collate(samples, network.spec, device)
    losses: dict[str, Tensor] = {}
    if dense_only:
        _neck(network)(network.pyramid(inputs))
    else:
        losses |= network.loss(inputs, targets)
    if dense is not None:
        judged = stack_judged(samples, device)
        losses["loss_dense"] = dense(targets, stack_kinds(samples, device), judged)
    return losses


@dataclass(frozen=True, slots=True)
class _Record:
    """What the first process writes down after a step."""

    directory: Path
    options: TrainOptions
    state: TrainState
    log: StepLog

    def add(
        self,
        done: int,
        values: Mapping[str, float],
        tick: Callable[[int], None] | None,
        on_step: Callable[[int, Mapping[str, float]], None] | None,
        validate: Callable[[SlumpNetwork, int], Mapping[str, float]] | None,
    ) -> None:
        """Log, keep and validate where it is due, always at the end."""
        last = done == self.options.steps
        self.log.add(values)
        if tick:
            tick(done)
        if done % self.options.log_every == 0 or last:
            row = self.log.write(done, learning_rate(self.options, done - 1))
            if on_step:
                on_step(done, row)
        if done % self.options.keep_every == 0 or last:
            self.state.save(self.directory / "last.pt", done)
            self.look(done, validate)

    def look(self, done: int, validate: Callable[[SlumpNetwork, int], Mapping[str, float]] | None) -> None:
        """Look at held-out chips, unless that was done before."""
        path = self.directory / "validation.jsonl"
        if validate is None or any(row["step"] == done for row in read_rows(path)):
            return
        scores = validate(self.state.average.network, done)
        if scores:
            append_row(path, {"step": done, **scores})


def rest(network: nn.Module) -> None:
    """Put frozen parts into evaluation mode: nothing drops out of what does not learn."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _neck(network: SlumpNetwork) -> nn.Module:
    return cast("nn.Module", network.detector.neck)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    @classmethod
    def from_torchrun(cls, device: str = "auto") -> Ranks:
        """Join the process group that torchrun describes, if there is one, to train on this device."""
        if "RANK" not in os.environ:
            return cls()
        backend = "nccl" if torch.cuda.is_available() and device != "cpu" else "gloo"
        torch.distributed.init_process_group(backend)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.count > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """End the process group."""
        if self.count > 1:
            torch.distributed.destroy_process_group()

    def average_gradients(self, *modules: nn.Module | None) -> None:
        """Replace every gradient by its mean over the processes; what none of them used keeps having none."""
        if self.count == 1:
            return
        parameters = [p for m in modules if m is not None for p in m.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = gradients[0].new_tensor([p.grad is not None for p in parameters])
        flat = nn.utils.parameters_to_vector([*gradients, used])
        torch.distributed.all_reduce(flat)
        *means, users = (flat / self.count).split([*(p.numel() for p in parameters), len(parameters)])
        # a gradient of zero is not none: weights would decay, and momenta move them
        for parameter, mean, is_used in zip(parameters, means, users.tolist(), strict=True):
            parameter.grad = mean.view_as(parameter).clone() if is_used else None


class DenseLoss(nn.Module):
    """Per-pixel slumps and look-alikes on the finest pyramid level, for training only.

    It listens to the neck's output, so neither the network nor its saved weights know of it. Naming what
    is no slump (snow, roads, gullies) is easier than finding slumps and teaches the features for it.
    """

    def __init__(self, network: SlumpNetwork) -> None:
        super().__init__()
        neck = _neck(network)
        channels = cast("int", neck.out_channels)
        self.predict = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, 1 + len(KINDS), 1)
        )
        self._finest: Tensor | None = None
        self._handle = neck.register_forward_hook(self._listen)

    def _listen(self, _module: nn.Module, _inputs: object, outputs: Sequence[Tensor]) -> None:
        self._finest = outputs[0]

    def detach(self) -> None:
        """Stop listening."""
        self._handle.remove()

    def forward(self, targets: Sequence[Target], kinds: Tensor, judged: Tensor) -> Tensor:
        """Cross-entropy, in which slump pixels weigh more, plus Dice, plus cross-entropy of the kinds.

        A cell counts by its share of `judged` ground (B, H, W); kinds are judged wherever they are known.
        """
        assert self._finest is not None  # noqa: S101 - the neck runs before the loss
        logits = self.predict(self._finest).float()
        size = (logits.shape[-2], logits.shape[-1])
        counts = functional.adaptive_avg_pool2d(judged[:, None], size)[:, 0]
        truth = torch.stack([_occupancy(target, size) for target in targets])
        share = (truth / counts.clamp(min=1e-3)).clamp(max=1)
        weight = logits.new_tensor(_SLUMP_WEIGHT)
        slump = logits[:, 0]
        entropy = functional.binary_cross_entropy_with_logits(slump, share, counts, pos_weight=weight)
        entropy = entropy / counts.mean().clamp(min=1e-3)
        probability = slump.sigmoid() * counts
        dice = 1 - (2 * (probability * truth).sum() + 1) / ((probability + truth).sum() + 1)
        loss: Tensor = entropy + dice + self._kinds_loss(logits[:, 1:], kinds, weight)
        return loss

    def _kinds_loss(self, logits: Tensor, kinds: Tensor, weight: Tensor) -> Tensor:
        known = (kinds != UNKNOWN_KIND).flatten(1).all(dim=1)
        if not known.any():
            return logits.sum() * 0
        present = torch.stack([kinds[known] == number for number in range(1, len(KINDS) + 1)], dim=1)
        truth = functional.adaptive_avg_pool2d(present.float(), (logits.shape[-2], logits.shape[-1]))
        # the mean over kinds, scaled so that all look-alikes together weigh about as much as slumps
        return 3 * functional.binary_cross_entropy_with_logits(logits[known], truth, pos_weight=weight)


def _occupancy(target: Target, size: tuple[int, int]) -> Tensor:
    """Share of slump in each cell of the finest level."""
    return functional.adaptive_avg_pool2d(target.masks.any(dim=0)[None, None].float(), size)[0, 0]


class Average:
    """Exponential moving average of a network's weights (Polyak), warmed up over the first steps."""

    def __init__(self, network: SlumpNetwork, decay: float) -> None:
        import copy

        self.network = copy.deepcopy(network).eval()
        self.network.requires_grad_(requires_grad=False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        smooth = [pair for pair in pairs if pair[0].dtype.is_floating_point]
        # all at once, as torch.optim.swa_utils does it
        torch._foreach_lerp_([pair[0] for pair in smooth], [pair[1] for pair in smooth], 1 - decay)
        for mine, theirs in pairs:
            if not mine.dtype.is_floating_point:
                mine.copy_(theirs)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


@dataclass(frozen=True, slots=True)
class TrainState:
    """All that a resumed run needs."""

    network: SlumpNetwork
    dense: DenseLoss | None
    average: Average
    optimizer: torch.optim.Optimizer

    def save(self, path: Path, step: int) -> None:
        """Write under a temporary name, then rename. Raises WriteError."""
        state = {
            "step": step,
            "network": self.network.state_dict(),
            "dense": self.dense.state_dict() if self.dense else {},
            "average": self.average.network.state_dict(),
            "updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def load(self, path: Path, device: str) -> int:
        """Restore from `path` when it exists; the number of steps already done."""
        if not path.exists():
            return 0
        state = torch.load(path, map_location=device, weights_only=True)
        self.network.load_state_dict(state["network"])
        if self.dense:
            self.dense.load_state_dict(state["dense"])
        self.average.network.load_state_dict(state["average"])
        self.average.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


class StepLog:
    """Means of the losses between two rows of a JSON-lines file."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path, self._sums, self._count = path, dict[str, float](), 0
        self._started, self._last = time.monotonic(), first_step

    def add(self, values: Mapping[str, float]) -> None:
        """Add one step's values."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def write(self, step: int, lr: float) -> dict[str, float]:
        """Append a row and start the means anew."""
        now = time.monotonic()
        speed = (now - self._started) / max(1, step - self._last)
        means = {name: value / self._count for name, value in self._sums.items()}
        row = {"step": step, "lr": lr, "seconds_per_step": speed, **means}
        append_row(self.path, row)
        self._sums, self._count, self._started, self._last = {}, 0, now, step
        return row


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """Append one line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(dict(row)) + "\n")


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a JSON-lines file, none if there is no file; a last line cut short by a kill is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows: list[dict[str, float]] = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint from which a killed training goes on."""
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
        temporary = path.with_name(path.name + ".part")
        temporary.write_text("".join(kept))
        temporary.replace(path)


def _batches(
    source: SampleSource, options: TrainOptions, first: int, ranks: Ranks
) -> Iterator[tuple[int, list[Sample]]]:
    """Batches drawn one ahead in a thread, in order."""
    ready: queue.Queue[tuple[int, list[Sample]] | BaseException] = queue.Queue(maxsize=3)
    stop = threading.Event()

    def offer(item: tuple[int, list[Sample]] | BaseException) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.5)
        return None

    def draw() -> None:
        try:
            for step in range(first, options.steps):
                if stop.is_set():
                    return
                count = options.batch_size * options.accumulate
                start = (step * ranks.count + ranks.rank) * count
                numbers = range(start, start + count)
                offer((step, [source.draw(number) for number in numbers]))
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            offer(error)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        for _ in range(first, options.steps):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _parameter_groups(
    network: nn.Module, dense: nn.Module | None, options: TrainOptions
) -> list[dict[str, object]]:
    """Norms, biases and position tables do not decay (domain: MViTv2's own recipe)."""
    names = [name for name, _ in network.named_parameters()]
    factors = layer_factors(names, options.layer_decay)
    factors |= dict.fromkeys(filter(is_of_guide, names), options.guide_lr_factor)
    named = [(f"network.{n}", factors.get(n, 1.0), p) for n, p in network.named_parameters()]
    named += [(f"dense.{n}", 1.0, p) for n, p in dense.named_parameters()] if dense else []
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, factor, parameter in named:
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and "rel_pos" not in name
            scale = factor * (options.backbone_lr_factor if is_of_branch(name) else 1.0)
            # where the rates are one, the groups are those that older checkpoints have
            groups.setdefault((".backbone." in name, scale, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if decays else 0.0,
            "lr_factor": scale,
        }
        for (_, scale, decays), parameters in groups.items()
    ]


def learning_rate(options: TrainOptions, step: int) -> float:
    """Linear warm-up; then a cosine down to a twentieth of `lr`, or steps down by ten."""
    warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
    share = step / max(1, options.steps)
    if options.schedule == "step":
        return options.lr * warm * 0.1 ** sum(share >= at for at in options.step_at)
    return options.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def _set_lr(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(options, step) * group["lr_factor"]


def _autocast(options: TrainOptions, device: str) -> AbstractContextManager[object]:
    if options.precision == "bf16":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return nullcontext()


def options_record(options: TrainOptions) -> dict[str, object]:
    """Plain data for the run's record."""
    return asdict(options)


def seed_everything(seed: int) -> None:
    """Fix torch's and numpy's global generators (weight initialisation, RoI sampling)."""
    # torch takes 64 bits and numpy 32, which a large seed and the number of a step go beyond
    torch.manual_seed(seed % 2**64)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - mmdet's samplers draw from the global generator
