"""A process that runs `rtsmap` commands one after another, and is replaced when it dies or hangs.

The commands see a detector by threshold instead of the network, so that thousands of them are affordable.
What is told of each: outcome, exit code, message, seconds, and the peak of resident memory it took.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
OUTCOMES = {0: "done", 1: "refused", 2: "usage", 3: "partial", 70: "BUG"}
"""By exit code; others: HANG for more than `LIMIT_S`, DIED for a process that a signal ended."""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a command; `message` is its error, or else its last line."""

    outcome: str
    message: str
    seconds: float
    peak_mb: float
    text: str = ""

    @property
    def bad(self) -> bool:
        """True for what must never happen."""
        return self.outcome.isupper() or self.peak_mb > 2048


class Worker:
    """Runs commands in a child of its own; each call is safe, whatever the one before did."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self.started = 0

    def close(self) -> None:
        """End the child."""
        self._end()

    def run(self, arguments: list[str], folder: Path) -> Told:
        """One command in `folder`."""
        child = self._child or self._start()
        begin = time.monotonic()
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(json.dumps([arguments, str(folder)]).encode() + b"\n")
            child.stdin.flush()
            answer = self._line(child, begin + self.limit_s)
        except BrokenPipeError:
            answer = b""
        seconds = time.monotonic() - begin
        if answer is None:
            self._end()
            return Told("HANG", f"no answer in {self.limit_s:.0f} s", seconds, 0)
        if not answer:
            code = child.wait()
            self._child = None
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            return Told("DIED", name, seconds, 0)
        return Told(**json.loads(answer))

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started += 1
        # what is imported at the start counts for no command
        self._line(self._child, time.monotonic() + 120)
        return self._child

    @staticmethod
    def _line(child: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """An answer; empty when the child has died, None when time is over."""
        assert child.stdout
        parts = []
        while (left := deadline - time.monotonic()) > 0:
            if select.select([child.stdout], [], [], left)[0]:
                part = os.read(child.stdout.fileno(), 1 << 16)
                if not part:
                    return b""
                parts.append(part)
                if part.endswith(b"\n"):
                    return b"".join(parts)
        return None

    def _end(self) -> None:
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._child = None


def message_of(text: str) -> str:
    """The error among a command's lines, with all that it lists, or else the last line."""
    lines = [line for line in text.splitlines() if line.strip() and "━" not in line]
    errors = [i for i, line in enumerate(lines) if line.startswith("Error: ")]
    if not errors:
        return lines[-1].strip() if lines else ""
    first, *rest = lines[errors[-1] :]
    listed = rest if first.endswith(":") else []
    return " ".join([first.removeprefix("Error: "), *map(str.strip, listed)]).strip()


def plain(text: str) -> str:
    """Without colours and control codes of the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


# --- in the child ----------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer commands from stdin on what was stdout; anything else that is printed goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _limit_memory()
    _use_thresholding_detector()
    answers.write(b"ready\n")
    for line in sys.stdin:
        arguments, folder = json.loads(line)
        os.chdir(folder)
        answers.write(json.dumps(asdict(_run(arguments))).encode() + b"\n")


def _limit_memory() -> None:
    """Beyond 4 GiB the machine itself is protected; what took more than 2 GiB is told by its peak."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))


def _use_thresholding_detector() -> None:
    from rtsmap.runs import calibrating, chipping, evaluating, mapping  # noqa: F401 - imported early
    from rtsmap.vectors import export  # noqa: F401
    from tests.runs.blob_scenes import engine

    mapping.engine_of = lambda *_, **__: engine(256, 64)


def _run(arguments: list[str]) -> Told:
    from rtsmap.cli.main import app

    out, begin, code = io.StringIO(), time.monotonic(), 0
    _forget_peak()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            app(arguments)
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
    text = plain(out.getvalue())
    outcome = OUTCOMES.get(code, f"exit {code}")
    return Told(outcome, message_of(text), time.monotonic() - begin, _peak_mb(), text)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    _serve()
