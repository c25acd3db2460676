from __future__ import annotations

import subprocess
import sys

import pytest


def test_the_collector_comes_seldom_and_circles_are_still_found():
    program = """
import gc, weakref
from rtsmap.garbage import collect_seldom
collect_seldom()
class Circle: pass
kept = []
def circle():
    one = Circle(); one.itself = one
    return weakref.ref(one)
first = circle()
rounds = 0
while first() is not None:
    kept.append([]); rounds += 1
    assert rounds < 10_000_000
assert rounds > 10_000, rounds
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_importing_rtsmap_leaves_the_collector_of_other_programs_alone():
    program = (
        "import gc; before = gc.get_threshold(); import rtsmap.cli.main; assert gc.get_threshold() == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_process_with_torchs_compiler_ends_without_talk_of_leaks():
    pytest.importorskip("triton")
    program = "from rtsmap.garbage import collect_seldom; collect_seldom(); import torch._dynamo"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert "leak" not in done.stderr
