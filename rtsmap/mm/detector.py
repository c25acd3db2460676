"""The network as a Detector: chips in, cropped masks out; device, batches and memory are dealt with here."""

from __future__ import annotations

import logging
import math
import platform
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rtsmap import timing
from rtsmap.errors import EngineError, GridMismatchError, OptionsError
from rtsmap.instances.detections import Detection, crop_mask, touched_sides
from rtsmap.mm.batches import normalise
from rtsmap.mm.checkpoints import load_weights
from rtsmap.mm.found import Found
from rtsmap.mm.limits import check_size
from rtsmap.mm.register import SlumpNetwork, build_network
from rtsmap.models import ModelCard
from rtsmap.nets.fusion import Inputs
from rtsmap.rasters.bands import InputSpec
from rtsmap.rasters.chips import Chip

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

MASK_FLOOR = 64
"""Masks are cropped to where the probability (0..255) reaches this, so that thresholds can change later."""

MASK_THRESHOLD = 128

MOST_AT_ONCE = 64
_ON_CPU = 4
_MOST_LANES = 16

logger = logging.getLogger(__name__)


class MmDetector:
    """Finds slumps on chips of any size; chips of one shape share batches of at most `batch_size`.

    On a CPU as many batches as torch has threads, up to 16, are worked on at once (`lanes`), each by one core
    or, where there are more, by its share: torch leaves cores waiting when it shares out a single batch. What
    one core works on gives the same answer however many work beside it. Calls may overlap, which keeps all
    cores at work where one ends (`calls_at_once`).

    A batch that does not fit into the device's memory is halved until it does; `halvings` counts how
    often and `batch_size` stays at what fitted. None finds one by itself: 4 on a CPU, which more do not make
    faster; on CUDA it begins with `MOST_AT_ONCE`, and halvings until the first batch fits are the search and
    do not count. Masks are resampled within their own boxes, on threads, while the device works on the next
    batch. `precision` is fp32, bf16, fp16, or auto: bf16 or fp16 on CUDA, fp32 elsewhere. `compiled` has
    torch compile the backbones; EngineError where it cannot.

    Features in bf16 differ from those in fp32 by some percent, and scores of slumps by some hundredths; what
    scores near a threshold may come or go.
    """

    def __init__(
        self,
        network: SlumpNetwork,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int = 2,
        lanes: int | None = None,
        compiled: bool = False,
    ) -> None:
        if min(threads, *(1 if given is None else given for given in (batch_size, lanes))) < 1:
            raise OptionsError(
                f"batch_size, threads and lanes must be positive, got {batch_size}, {threads} and {lanes}"
            )
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        # our backbones keep maps as (B, H, W, C): convolutions that do so as well spare copies, a seventh of
        # the time on a CPU
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self._searching = batch_size is None
        self.batch_size = batch_size or (MOST_AT_ONCE if self.device.startswith("cuda") else _ON_CPU)
        self.threads = threads
        self._torch_threads = torch.get_num_threads() if self.device == "cpu" else 1
        self.lanes = min(self._torch_threads, _MOST_LANES) if lanes is None else lanes
        self.halvings = 0
        self.calls_at_once = 1 if self.lanes == 1 else 2
        self._calls = 0
        self._todos: WeakSet[_Todo] = WeakSet()
        self._lock = Lock()
        self._threads_of_a_lane = max(1, self._torch_threads // self.lanes)
        self._pool = (
            ThreadPoolExecutor(self.lanes, "network", torch.set_num_threads, (self._threads_of_a_lane,))
            if self.lanes > 1
            else None
        )
        if self.device == "cpu" and self.precision == "bf16" and not _computes_in_bf16():
            logger.warning("this processor does not compute in bf16: it takes many times longer than fp32")
        if compiled:
            self._compile()

    @property
    def spec(self) -> InputSpec:
        """What the network looks at."""
        return self.network.spec

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        """One list of detections for each chip, best score first."""
        todo = _Todo(same_shape(chips))
        self._todos.add(todo)
        pasted: dict[int, Future[list[Detection]]] = {}
        with ThreadPoolExecutor(self.threads, "masks") as masks:
            work = partial(self._work, chips, todo, pasted, masks)
            if self._pool is None or not chips:
                work()
            else:
                with todo.dropped_on_error(), self._cores_shared_out():
                    ended = wait([self._pool.submit(work) for _ in range(self.lanes)]).done
                for lane in ended:
                    lane.result()
            if todo.is_given_up:
                raise KeyboardInterrupt
            return [pasted[i].result() for i in range(len(chips))]

    def give_up(self) -> None:
        """Let calls that other threads are in end with KeyboardInterrupt, once batches in hand are done."""
        for todo in tuple(self._todos):
            todo.give_up()

    @contextmanager
    def _cores_shared_out(self) -> Iterator[None]:
        """Torch's threads are those of a lane, until the last of the calls that overlap has ended."""
        with self._lock:
            self._calls += 1
            torch.set_num_threads(self._threads_of_a_lane)
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    torch.set_num_threads(self._torch_threads)

    def _work(
        self,
        chips: Sequence[Chip],
        todo: _Todo,
        pasted: dict[int, Future[list[Detection]]],
        masks: ThreadPoolExecutor,
    ) -> None:
        """Take batches until none is left."""
        with timing.stage("inference"), todo.dropped_on_error():
            while part := todo.take(self.batch_size):
                found = self._try([chips[i] for i in part])
                if found is None:
                    todo.give_back(part)
                    continue
                for i, one in zip(part, found, strict=True):
                    pasted[i] = masks.submit(paste, one, chips[i])

    def _try(self, chips: Sequence[Chip]) -> list[Found] | None:
        """Run the network; None when memory did not suffice and the batch size was halved."""
        try:
            return self._run(chips)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            if len(chips) == 1:
                shape = chips[0].tile.read.shape
                raise EngineError(
                    f"a single chip of {shape[0]} x {shape[1]} pixels does not fit into the memory of "
                    f"{self.device}; use smaller chips or another device"
                ) from exc
        # outside the except block, whose traceback would keep the tensors alive
        with self._lock:
            half = len(chips) // 2
            if half < self.batch_size:
                self.halvings += not self._searching
                self.batch_size = half
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return None

    def _run(self, chips: Sequence[Chip]) -> list[Found]:
        inputs = stack(chips, self.spec, self.device)
        with torch.inference_mode(), self._autocast():
            found = self.network.detect(inputs)
        self._searching = False
        return [Found(*(t.float().cpu() for t in (f.boxes, f.scores, f.masks))) for f in found]

    def _compile(self) -> None:
        """Compile the backbones, and run them once, so that what cannot be is said at once."""
        side = 64
        inputs = {
            m.name: (
                torch.zeros(1, len(m.bands), side, side, device=self.device),
                torch.ones(1, side, side, dtype=torch.bool, device=self.device),
            )
            for m in self.spec.modalities
        }
        try:
            detector = self.network.detector
            detector.backbone = torch.compile(detector.backbone)
            # what is compiled for other threads than those of a lane is compiled again
            with self._cores_shared_out(), torch.inference_mode(), self._autocast():
                self.network.pyramid(inputs)
        except Exception as exc:
            reason = str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
            raise EngineError(f"torch cannot compile the network: {reason}; leave out --compile") from exc

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype) if dtype else nullcontext()


class _Todo:
    """Groups of chips, of which lanes take batches; a group is cut into batches of about the same size."""

    def __init__(self, groups: Sequence[list[int]]) -> None:
        self._groups = deque(groups)
        self._lock = Lock()
        self.is_given_up = False

    def take(self, most: int) -> list[int]:
        """The next batch of at most `most`; empty when nothing is left."""
        with self._lock:
            if not self._groups:
                return []
            group = self._groups.popleft()
            size = math.ceil(len(group) / math.ceil(len(group) / most))
            if group[size:]:
                self._groups.appendleft(group[size:])
            return group[:size]

    def give_back(self, batch: list[int]) -> None:
        """Take a batch back, for a smaller one."""
        with self._lock:
            self._groups.appendleft(batch)

    def give_up(self) -> None:
        """Leave nothing to do."""
        with self._lock:
            self.is_given_up |= bool(self._groups)
            self._groups.clear()

    @contextmanager
    def dropped_on_error(self) -> Iterator[None]:
        """Leave nothing to do for other lanes when one fails."""
        try:
            yield
        except BaseException:
            self.give_up()
            raise


def load_detector(
    card: ModelCard,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    compiled: bool = False,
) -> MmDetector:
    """The detector of a model bundle. Raises CardError, WeightsError or EngineError."""
    check_size(card.network, card.weights_bytes)
    network = build_network(card.network, card.spec)
    load_weights(network, card.weights)
    return MmDetector(network, device=device, precision=precision, batch_size=batch_size, compiled=compiled)


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where there is one, else cpu; raises EngineError for what torch cannot use."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).splitlines()[0]
        raise EngineError(f"torch cannot use device '{device}': {reason}; wanted auto, cpu or cuda") from exc
    return device if kind != "cpu" else "cpu"


def _computes_in_bf16() -> bool:
    """False for x86 processors without instructions for bf16; of others torch does not tell."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    answers = [getattr(torch.cpu, name)() for name in asked if hasattr(torch.cpu, name)]
    return platform.machine().lower() not in {"x86_64", "amd64"} or not answers or any(answers)


def count_gpus() -> int:
    """How many GPUs torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_precision(precision: str, device: str) -> str:
    """`auto` becomes bf16 or fp16 on CUDA and fp32 elsewhere; raises OptionsError for unknown names."""
    cuda = device.startswith("cuda")
    if precision == "auto":
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if cuda else "fp32"
    if precision not in PRECISIONS or (precision == "fp16" and not cuda):
        raise OptionsError(
            f"precision '{precision}' on {device}: wanted auto, fp32 or bf16, or fp16 on a CUDA device"
        )
    return precision


def same_shape(chips: Sequence[Chip]) -> list[list[int]]:
    """Indexes of the chips grouped by shape, so that no chip is padded and none sees another's size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, chip in enumerate(chips):
        groups.setdefault(chip.tile.read.shape, []).append(i)
    return list(groups.values())


def stack(chips: Sequence[Chip], spec: InputSpec, device: str) -> Inputs:
    """Chips of one shape as the network's inputs, normalised; values that are not finite count as missing."""
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    for modality in spec.modalities:
        try:
            layers = [chip.layers[modality.name] for chip in chips]
        except KeyError as exc:
            has = ", ".join(chips[0].layers)
            raise GridMismatchError(f"a chip has no layer '{modality.name}', only: {has}") from exc
        pixels = np.stack([normalise(layer, modality) for layer in layers])
        valid = np.stack([layer.valid for layer in layers]) & np.isfinite(pixels).all(axis=1)
        pixels = np.where(valid[:, None], pixels, np.float32(0))
        inputs[modality.name] = (_sent(pixels, device), _sent(valid, device))
    return inputs


def _sent(array: npt.NDArray[Any], device: str) -> Tensor:
    """An array on the device; to a GPU it travels from pinned memory, beside what the GPU does."""
    tensor = torch.from_numpy(array)
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(exc: BaseException) -> bool:
    """True for the errors that torch raises when memory is short, on a GPU and on a CPU."""
    if isinstance(exc, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(exc) for text in ("out of memory", "can't allocate memory", "not enough memory"))


def paste(found: Found, chip: Chip) -> list[Detection]:
    """Bring box-local masks to the grid: cropped detections of one chip, on ground that was seen."""
    detections = []
    seen_ground = np.any([layer.valid for layer in chip.layers.values()], axis=0)
    boxes, scores, masks = found.boxes.numpy(), found.scores.numpy(), found.masks.numpy()
    for box, score, mask in zip(boxes, scores, masks, strict=True):
        placed = place_mask(mask, box, chip.tile.read.shape)
        if placed is None:
            continue
        (row, col), pixels = placed
        height, width = pixels.shape
        pixels = pixels * seen_ground[row : row + height, col : col + width]
        corner = (chip.tile.read.row0 + row, chip.tile.read.col0 + col)
        seen, core = crop_mask(pixels, corner, MASK_FLOOR), crop_mask(pixels, corner, MASK_THRESHOLD)
        if seen is None or core is None:
            continue
        window, cropped = seen
        inside = cropped >= MASK_THRESHOLD
        rows, cols = window.slices(chip.tile.read)
        detections.append(
            Detection(
                score=float(np.clip(score, 0, 1)),
                window=window,
                mask=cropped,
                tile=chip.tile.index,
                sides=touched_sides(core[0], chip.tile),
                modalities=tuple(
                    name for name, layer in chip.layers.items() if (layer.valid[rows, cols] & inside).any()
                ),
            )
        )
    return detections


def place_mask(
    mask: npt.NDArray[np.float32], box: npt.NDArray[np.float32], shape: tuple[int, int]
) -> tuple[tuple[int, int], npt.NDArray[np.uint8]] | None:
    """Resample a mask (m, m) of probabilities to the pixels that its box x1 y1 x2 y2 touches.

    Bilinear with zero outside the box and pixel centres at half numbers, as mmdet pastes. Returns the
    (row, column) of the upper left pixel and the mask (h, w) uint8, or None for a box off the chip.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    row0, row1 = max(int(np.floor(y1)), 0), min(int(np.ceil(y2)), shape[0])
    col0, col1 = max(int(np.floor(x1)), 0), min(int(np.ceil(x2)), shape[1])
    if row1 <= row0 or col1 <= col0 or not (x2 > x1 and y2 > y1):
        return None
    down = _hats(np.arange(row0, row1), y1, y2, mask.shape[0])
    across = _hats(np.arange(col0, col1), x1, x2, mask.shape[1])
    probability = down @ mask.astype(np.float32) @ across.T
    return (row0, col0), np.floor(probability.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _hats(pixels: npt.NDArray[np.int64], start: float, end: float, cells: int) -> npt.NDArray[np.float32]:
    """Bilinear weight of each of `cells` mask cells in each pixel: (pixels, cells)."""
    at = (pixels + 0.5 - start) / (end - start) * cells - 0.5
    weights = 1 - np.abs(at[:, None] - np.arange(cells)[None, :])
    return weights.clip(min=0).astype(np.float32)
