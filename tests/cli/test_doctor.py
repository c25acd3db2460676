from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from rtsmap import models
from rtsmap.cli import doctor
from rtsmap.cli.doctor import Finding
from rtsmap.cli.main import app
from tests.test_models import bundle


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """A machine with the default model; the network's own check is left to the last test."""
    card = bundle(tmp_path / models.DEFAULT_BUNDLE)
    monkeypatch.setattr(models, "bundle_roots", lambda: (tmp_path,))
    monkeypatch.setattr(doctor, "_network", lambda: iter([Finding("torch", "not looked at")]))
    return card


def test_a_healthy_machine_is_0_and_versions_are_shown(healthy):
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.stdout
    for word in ("python", "GDAL", "PROJ", "pyogrio", "shapely", f"model {models.DEFAULT_BUNDLE}"):
        assert word in done.stdout
    assert "FAIL" not in done.stdout


def test_altered_weights_are_found_with_a_remedy(healthy):
    healthy.weights.write_bytes(b"\x00" * healthy.weights_bytes)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "sha256" in done.stdout
    assert "-> " in done.stdout


def test_a_package_that_does_not_import_is_found_with_a_remedy(healthy, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "pyarrow" in done.stdout
    assert "pip install" in done.stdout


def test_a_missing_default_model_is_found(tmp_path, healthy, monkeypatch):
    monkeypatch.setattr(models, "bundle_roots", lambda: ())
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "rts-starter" in done.stdout


def test_notes_alone_do_not_fail(healthy, monkeypatch):
    note = Finding("gpu", "an old driver", "update it", essential=False)
    monkeypatch.setattr(doctor, "_network", lambda: iter([note]))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "note  gpu" in done.stdout


def test_torch_torchvision_and_mmdet_work_here():
    findings = {finding.subject: finding for finding in doctor._network()}
    assert set(findings) == {"torch", "torchvision", "gpu", "mmdet", "nms"}
    assert not any(finding.broken and finding.essential for finding in findings.values())
