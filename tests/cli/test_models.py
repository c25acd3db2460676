from __future__ import annotations

import pickle
import zipfile

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


class Trap:
    """Unpickling it would show."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def torch_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("extra.pkl", lambda path: path.write_bytes(pickle.dumps(Trap()))),
        ("notes.txt", lambda path: path.write_bytes(pickle.dumps(Trap()))),
        ("old.txt", lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=0))),
        ("old.md", lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=1))),
        ("weights.pth", torch_archive),
        ("picture.png", torch_archive),
        ("model.py", lambda path: path.write_text("raise SystemExit")),
        ("deeper/model.py", lambda path: path.write_text("raise SystemExit")),
    ],
)
def test_verify_refuses_pickles_and_code_and_opens_none(tiny, name, write):
    stray = tiny.folder / name
    stray.parent.mkdir(exist_ok=True)
    write(stray)
    refused = CliRunner().invoke(app, ["models", "verify", "tiny"])
    assert refused.exit_code == 1
    assert str(stray) in refused.stderr.replace("\n", "")
    assert not Trap.sprung
    stray.unlink()
    assert CliRunner().invoke(app, ["models", "verify", "tiny"]).exit_code == 0


@pytest.mark.parametrize(
    "text",
    ["", ".", "I measured it.\n", "# Model\n", "Notes.", "(none)", "\n.\n", "Notice. All\nof it\nsee.\n"],
)
def test_verify_takes_no_text_for_a_pickle(tiny, text):
    (tiny.folder / "notes.txt").write_text(text)
    assert CliRunner().invoke(app, ["models", "verify", "tiny"]).exit_code == 0


def test_verify_refuses_a_card_without_a_field(tiny):
    path = tiny.folder / "card.toml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("licence =")))
    refused = CliRunner().invoke(app, ["models", "verify", "tiny"])
    assert refused.exit_code == 1
    assert "'licence' is missing" in refused.stderr


def test_an_absent_default_is_an_error_with_a_remedy(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["models", "show"])
    assert done.exit_code == 1
    assert "rts-starter" in done.stderr
