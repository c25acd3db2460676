from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rtsmap import sandbox
from rtsmap.sandbox import CrashedError


def test_answers_come_back_and_one_child_gives_them_all():
    assert sandbox.call("math:hypot", 3, 4) == 5
    assert sandbox.call("os:getpid") == sandbox.call("os:getpid") != os.getpid()


def test_a_crash_is_a_sentence_and_the_next_call_works():
    with pytest.raises(CrashedError, match=r"crashes \(SIGABRT\)" if os.name != "nt" else "crashes"):
        sandbox.call("os:abort")
    assert sandbox.call("math:hypot", 3, 4) == 5


def test_what_takes_too_long_is_stopped():
    before = sandbox.call("os:getpid")
    with pytest.raises(CrashedError, match=r"more than 1 s"):
        sandbox.call("time:sleep", 60, limit_s=1)
    assert sandbox.call("os:getpid") != before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_what_takes_too_much_memory_is_told():
    with pytest.raises(CrashedError, match="2 GiB of memory"):
        sandbox.call("operator:mul", [0], 10**9)


def test_exceptions_come_back_as_sentences():
    with pytest.raises(CrashedError, match=r"ZeroDivisionError"):
        sandbox.call("operator:truediv", 1, 0)


def test_what_a_library_prints_is_no_answer():
    assert sandbox.call("builtins:print", "[1]") is None


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_the_child_ends_with_its_parent():
    code = (
        "import os, signal; from rtsmap import sandbox; print(sandbox.call('os:getpid'), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    end = time.monotonic() + 20
    while time.monotonic() < end and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_modules_in_the_working_folder_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "statistics.py").write_text("raise SystemExit(9)")
    code = "from rtsmap import sandbox; print(sandbox.call('statistics:mean', [1, 3]))"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.pop(0); {code}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "2", done.stderr
