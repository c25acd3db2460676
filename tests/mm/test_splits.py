from __future__ import annotations

import pytest

from rtsmap.mm.splits import is_held_out


def test_about_the_wanted_share_is_held_out():
    names = [f"group {i}" for i in range(2000)]
    for share in (0.0, 0.1, 0.5, 1.0):
        assert sum(is_held_out(name, share) for name in names) / 2000 == pytest.approx(share, abs=0.03)


def test_a_larger_share_holds_out_the_same_groups_and_more():
    names = [f"group {i}" for i in range(300)]
    small = {name for name in names if is_held_out(name, 0.1)}
    assert small < {name for name in names if is_held_out(name, 0.3)}
