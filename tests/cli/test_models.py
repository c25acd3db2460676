from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rtsmap import models
from rtsmap.cli.main import app
from tests.test_models import bundle


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    card = bundle(tmp_path / "shipped" / "tiny")
    monkeypatch.setattr(models, "bundle_roots", lambda: (tmp_path / "shipped",))
    return card


def test_list_has_one_line_a_model(tiny):
    done = CliRunner().invoke(app, ["models", "list"])
    assert done.exit_code == 0
    assert done.stdout == 'tiny\t1.0\t4 m\tA "tiny" net.\n'


def test_show_tells_what_the_card_tells(tiny):
    shown = CliRunner().invoke(app, ["models", "show", "tiny"]).stdout
    for fact in ("tiny 1.0", "Apache-2.0", "relative_elevation", "64 px, overlap 16 px", "0.5 on nothing"):
        assert fact in shown


def test_verify_finds_altered_weights(tiny):
    good = CliRunner().invoke(app, ["models", "verify", "tiny"])
    assert good.exit_code == 0
    assert tiny.sha256 in good.stdout
    tiny.weights.write_bytes(tiny.weights.read_bytes()[:-1] + b"\x01")
    bad = CliRunner().invoke(app, ["models", "verify", str(tiny.folder)])
    assert bad.exit_code == 1
    assert "sha256" in bad.stderr


def test_an_absent_default_is_an_error_with_a_remedy(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["models", "show"])
    assert done.exit_code == 1
    assert "rts-starter" in done.stderr
