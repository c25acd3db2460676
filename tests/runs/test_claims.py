from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtsmap.runs import claims as claims_module
from rtsmap.runs.claims import claiming, held, sweep
from rtsmap.runs.plan import CLAIMS


def take_all(directory, names) -> list[str]:
    with claiming() as claims:
        taken = [name for name in names if claims.take(directory, name)]
        time.sleep(1)  # so that nobody's claims are over before all have asked
        return taken


def test_of_many_workers_each_shard_has_one(tmp_path):
    names = [f"shard-{i}" for i in range(50)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take_all(tmp_path, names), range(8)))
    assert sorted(name for one in taken for name in one) == sorted(names)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_let_go_can_be_taken_again(tmp_path):
    with claiming() as one, claiming() as other:
        assert one.take(tmp_path, "a")
        assert not other.take(tmp_path, "a")
        assert [claim["name"] for claim in held(tmp_path)] == ["a"]
        one.release(tmp_path, "a")
        assert other.take(tmp_path, "a")
    assert held(tmp_path) == []


def test_claims_of_a_killed_process_of_this_machine_are_over_at_once(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from rtsmap.runs.claims import Claims\n"
        "assert Claims().take(Path(sys.argv[1]), 'a'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=os.environ)
    assert (tmp_path / CLAIMS / "a").exists()
    assert held(tmp_path) == []
    with claiming() as claims:
        assert claims.take(tmp_path, "a")


def test_claims_of_other_machines_are_over_when_nobody_renews_them(tmp_path):
    path = tmp_path / CLAIMS / "a"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": "another one", "pid": 1}))
    with claiming() as claims:
        assert not claims.take(tmp_path, "a")
        past = time.time() - 2 * claims_module.LEASE_S
        os.utime(path, (past, past))
        assert claims.take(tmp_path, "a")


def test_claims_are_renewed_while_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "_RENEW_S", 0.05)
    with claiming() as claims:
        claims.take(tmp_path, "a")
        os.utime(tmp_path / CLAIMS / "a", (0, 0))
        deadline = time.time() + 20
        while (tmp_path / CLAIMS / "a").stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert (tmp_path / CLAIMS / "a").stat().st_mtime > 0


def test_sweeping_removes_what_nobody_holds_and_nothing_else(tmp_path):
    with claiming() as claims:
        claims.take(tmp_path, "mine")
        claims.take(tmp_path / "looks" / "x", "mine")
        dead = json.dumps({**claims_module._me(), "pid": _a_dead_pid()})
        (tmp_path / CLAIMS / "dead").write_text(dead)
        sweep(tmp_path)
        assert [p.name for p in (tmp_path / CLAIMS).iterdir()] == ["mine"]
        assert [p.name for p in (tmp_path / "looks" / "x" / CLAIMS).iterdir()] == ["mine"]


def _a_dead_pid() -> int:
    process = multiprocessing.get_context("spawn").Process(target=print, args=("",))
    process.start()
    process.join()
    return process.pid


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "machine": 3}'])
def test_a_broken_claim_is_somebodys_until_its_lease_is_over(tmp_path, text):
    (tmp_path / CLAIMS).mkdir()
    (tmp_path / CLAIMS / "a").write_text(text)
    with claiming() as claims:
        assert not claims.take(tmp_path, "a")
        os.utime(tmp_path / CLAIMS / "a", (0, 0))
        assert claims.take(tmp_path, "a")


def test_a_disk_that_is_full_leaves_no_empty_claim_and_is_named(tmp_path, monkeypatch):
    class Full:
        def __init__(self, descriptor, _mode):
            os.close(descriptor)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def write(self, _text):
            pass

    with claiming() as claims:
        with monkeypatch.context() as patched:
            patched.setattr(claims_module.os, "fdopen", Full)
            with pytest.raises(OSError, match="No space left") as caught:
                claims.take(tmp_path, "a")
        assert caught.value.filename == str(tmp_path / CLAIMS / "a")
        assert claims.take(tmp_path, "a")


def test_sweeping_beside_workers_that_end_stops_at_nothing(tmp_path, monkeypatch):
    folder = tmp_path / CLAIMS
    folder.mkdir()
    # between the look for folders and the look into them the last claim is let go
    monkeypatch.setattr(claims_module, "folders_below", lambda *_: [folder])
    folder.rmdir()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
