"""Functions called in a child process, so that what crashes, stalls or swallows memory is an answer.

GDAL opens some two hundred formats with C and C++ code, and a damaged or hostile file may end or stall the
process that opens it. One child serves all calls of a process, is started when first wanted, and another
one takes its place when it dies or is stopped. It ends with its parent, even if that is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

LIMIT_S = 30.0
"""A file that takes longer to look at would stall a run as well."""

MEMORY_BYTES = 2 << 30

_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from rtsmap import sandbox; sandbox.serve(sys.argv[2:])"
)


class CrashedError(Exception):
    """The function never came back; the message says what became of the child."""


def start(*modules: str) -> None:
    """Start the child without waiting for it: it imports these modules while the caller imports its own."""
    with _lock:
        _running(modules)


def call(function: str, *arguments: Any, limit_s: float = LIMIT_S) -> Any:
    """What `function` ("package.module:name") returns in the child; all is passed as JSON.

    Raises CrashedError when the child dies or takes longer than `limit_s`. Exceptions of the function come
    back as CrashedError, too: functions that are called this way answer in data.
    """
    with _lock:
        child = _running()
        answer = child.ask(json.dumps([function, arguments, limit_s]), limit_s)
        if answer is None or not answer.strip():
            raise CrashedError(_stop(child, late=answer is None, limit_s=limit_s))
    told = json.loads(answer)
    if "error" in told:
        raise CrashedError(str(told["error"]))
    return told["value"]


class _Child:
    """The process, and a thread that takes its answers off the pipe (Windows cannot wait for one)."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.owner = os.getpid()
        path = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _PROGRAM, path, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is the parent's to answer
            start_new_session=True,
        )
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._take, daemon=True, name="sandbox").start()

    def _take(self) -> None:
        for line in self.process.stdout or ():
            self.answers.put(line)
        self.answers.put(b"")

    def ask(self, question: str, limit_s: float) -> bytes | None:
        """The answer; empty when the child is dead, None when time is over."""
        try:
            if self.process.stdin:
                self.process.stdin.write(question.encode() + b"\n")
                self.process.stdin.flush()
            return self.answers.get(timeout=limit_s)
        except OSError:
            return b""
        except queue.Empty:
            return None


_lock = threading.RLock()
_child: _Child | None = None


def _running(modules: Sequence[str] = ()) -> _Child:
    """The child of this process; a forked one has its own."""
    global _child  # noqa: PLW0603 - one for the process
    if _child is None or _child.owner != os.getpid() or _child.process.poll() is not None:
        try:
            _child = _Child(modules)
        except OSError as exc:
            raise CrashedError(f"no child process can be started: {exc}") from exc
    return _child


@atexit.register
def _end() -> None:
    if _child is not None and _child.owner == os.getpid():
        _stop(_child, late=True, limit_s=0)


def _stop(child: _Child, *, late: bool, limit_s: float) -> str:
    """End a child that is of no more use; says why, in words that follow the name of a file."""
    global _child  # noqa: PLW0603 - one for the process
    _child = None
    if late:
        child.process.kill()
    code = child.process.wait()
    for stream in (child.process.stdin, child.process.stdout):
        with contextlib.suppress(OSError):
            if stream:
                stream.close()
    if late:
        return f"opening it takes more than {limit_s:.0f} s"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the library that reads it crashes ({name})"


# In the child


def serve(modules: Sequence[str] = ()) -> None:
    """Import `modules`, then answer questions on stdin, one a line, until the parent closes it or dies."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    # what libraries print must not be taken for an answer
    os.dup2(2, 1)
    _limit_memory()
    for module in modules:
        # whoever asks for what it holds is told
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(*json.loads(line))).encode() + b"\n")


def _answer(function: str, arguments: list[Any], limit_s: float) -> dict[str, Any]:
    module, _, name = function.partition(":")
    # nobody stops a child that hangs when its parent was killed
    _alarm(int(limit_s) + 10)
    try:
        return {"value": getattr(importlib.import_module(module), name)(*arguments)}
    except MemoryError:
        return {"error": f"looking at it takes more than {MEMORY_BYTES >> 30} GiB of memory"}
    except Exception as exc:  # noqa: BLE001 - whatever it is, the parent is told
        return {"error": f"it cannot be looked at ({type(exc).__name__}: {exc})"}
    finally:
        _alarm(0)


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
