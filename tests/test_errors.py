"""What is left of other libraries' messages in ours."""

from __future__ import annotations

import errno
import os

from rtsmap.errors import why


def test_the_file_is_not_named_twice():
    assert (
        why(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a.json"))
        == "no such file or directory"
    )
    assert why(OSError("a message without a number")) == "a message without a number"
    assert why(ValueError("line 3: no number")) == "line 3: no number"


def test_advice_that_nobody_can_follow_is_left_out():
    said = (
        "'a.tif' not recognized; It might help to specify the correct driver explicitly by prefixing the path"
    )
    assert why(ValueError(said)) == "'a.tif' not recognized"
