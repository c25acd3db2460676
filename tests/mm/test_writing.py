from __future__ import annotations

import resource
import signal

import pytest
import torch

from rtsmap.errors import WriteError
from rtsmap.mm.checkpoints import save_weights
from rtsmap.mm.packs import write_pack
from rtsmap.mm.train import Average, TrainState
from tests.mm.labelled import labelled_image
from tests.mm.tiny import tiny_network


@pytest.fixture
def limit():
    """Sets how large a file may become; a disk that is full ends in the same errors."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kind", ["checkpoint", "weights", "pack"])
def test_without_room_what_was_there_stays_and_a_sentence_says_why(tmp_path, limit, kind):
    network = tiny_network()
    state = TrainState(network, None, Average(network, 0.9), torch.optim.AdamW(network.parameters()))
    write = {
        "checkpoint": lambda path: state.save(path, 3),
        "weights": lambda path: save_weights(network, path),
        "pack": lambda path: write_pack(path, [labelled_image()]),
    }[kind]
    path = tmp_path / "a.file"
    write(path)
    before = path.read_bytes()
    for share in (0.0, 0.5, 0.95):
        limit(int(share * len(before)))
        with pytest.raises(WriteError, match=r"a\.file: cannot be written .*(File too large|os error 27)"):
            write(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
