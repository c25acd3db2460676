"""Files appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rtsmap.atomic import folders_below, parts_of, refuse_inputs, remove_parts, whole_file
from rtsmap.errors import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["map.gpkg", "слепок оползня 1.geojson", "x" * 200 + ".shp"])
def test_what_is_written_appears_at_the_end(tmp_path, name):
    with whole_file(tmp_path / name) as temporary:
        assert temporary.name == name
        temporary.write_bytes(b"content")
        assert not (tmp_path / name).exists()
    assert (tmp_path / name).read_bytes() == b"content"
    assert names(tmp_path) == [name]


def fail_in_the_middle(path, *, overwrite):
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("power cut")


def test_a_failure_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        fail_in_the_middle(tmp_path / "map.gpkg", overwrite=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["map.gpkg", "map.shp"])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        fail_in_the_middle(tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_bytes() == b"old"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["map.gpkg", "map.shp"])
def test_an_interrupt_once_the_new_file_is_there_leaves_it(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"old")
    replace = Path.replace

    def interrupted(path, target):
        replace(path, target)
        if Path(target) == tmp_path / name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / name, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / name).read_bytes() == b"new"
    assert names(tmp_path) == [name]


def test_a_killed_process_leaves_no_file_of_that_name(tmp_path):
    program = (
        "import sys, time, pathlib\n"
        "from rtsmap.atomic import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1]), overwrite=True) as temporary:\n"
        "    temporary.write_bytes(b'half'); print('written', flush=True); time.sleep(600)\n"
    )
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"written\n"
        writer.kill()
    assert path.read_bytes() == b"old"
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_an_existing_file_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="--overwrite"), whole_file(path):
        pytest.fail("the block must not run")
    assert path.read_bytes() == b"old"


def test_a_file_that_another_program_made_meanwhile_is_kept(tmp_path):
    path = tmp_path / "map.gpkg"

    def write_too_late():
        with whole_file(path) as temporary:
            temporary.write_bytes(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(InputError, match="exists"):
        write_too_late()
    assert path.read_bytes() == b"theirs"


def test_an_input_is_refused_as_output_by_whatever_name(tmp_path):
    scene, out = tmp_path / "scene.tif", tmp_path / "out.tif"
    scene.write_bytes(b"pixels")
    (tmp_path / "link.tif").symlink_to(scene)
    inputs = [None, "https://somewhere/scene.tif", "<VRTDataset>" * 1000, str(scene)]
    refuse_inputs(out, inputs)
    out.write_bytes(b"an older output")
    refuse_inputs(out, inputs)
    for name in ("scene.tif", "link.tif", "../" + tmp_path.name + "/scene.tif"):
        with pytest.raises(InputError, match="would be replaced"):
            refuse_inputs(tmp_path / name, inputs)


def test_a_folder_that_is_not_there_is_an_error_of_the_user(tmp_path):
    with pytest.raises(InputError, match="No such file"), whole_file(tmp_path / "no" / "map.gpkg"):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match="is a folder"), whole_file(tmp_path):
        pytest.fail("the block must not run")


def test_parts_of_a_replaced_shapefile_do_not_stay(tmp_path):
    for suffix in (".shp", ".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn"):
        (tmp_path / f"old{suffix}").write_bytes(b"old")
    (tmp_path / "old.qml").write_bytes(b"the user's style")
    with whole_file(tmp_path / "old.shp", overwrite=True) as temporary:
        for suffix in (".shp", ".shx", ".dbf", ".cpg"):
            temporary.with_suffix(suffix).write_bytes(b"new")
    assert names(tmp_path) == ["old.cpg", "old.dbf", "old.qml", "old.shp", "old.shx"]
    assert (tmp_path / "old.dbf").read_bytes() == b"new"


def test_the_journal_of_a_replaced_geopackage_does_not_stay(tmp_path):
    # SQLite would play the old journal into the new file.
    for name in ("map.gpkg", "map.gpkg-wal", "map.gpkg-shm", "map2.gpkg-wal"):
        (tmp_path / name).write_bytes(b"old")
    with whole_file(tmp_path / "map.gpkg", overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["map.gpkg", "map2.gpkg-wal"]


def test_what_is_moved_has_the_rights_of_an_ordinary_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with whole_file(tmp_path / "ours.gpkg") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "ours.gpkg").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_whose_long_names_begin_alike_leave_each_other_alone(tmp_path):
    """Scenes of one strip share the first 40 letters."""
    name = "WV02_20160808225713_1030010059A0C100_16AUG08225713-P1BS-500807681080_01_P00{}.gpkg"
    mine, other = (tmp_path / name.format(i) for i in (1, 2))
    with whole_file(mine) as temporary:
        assert parts_of(mine) == [temporary.parent]
        assert parts_of(other) == []
        temporary.write_text("content")


@pytest.mark.parametrize("name", ["a" * 250 + ".gpkg", "é" * 120 + ".gpkg", os.fsdecode(b"sc\xe8ne.gpkg")])
def test_names_that_cannot_be_written_are_refused_before(tmp_path, name):
    with pytest.raises(InputError, match="choose a"), whole_file(tmp_path / name):
        pytest.fail("nothing is to be written")
    assert not list(tmp_path.iterdir())


def test_parts_of_killed_processes_are_removed_and_younger_ones_stay(tmp_path):
    out = tmp_path / "a [1].gpkg"
    old, young = (Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=tmp_path)) for _ in "ab")
    (tmp_path / ".a 1.gpkg.x.part").mkdir()
    os.utime(old, (1e9, 1e9))
    assert sorted(parts_of(out)) == sorted([old, young])
    remove_parts([*parts_of(out), tmp_path / "gone"], 1.1e9)
    assert parts_of(out) == [young]


def test_folders_that_others_remove_meanwhile_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a" / ".map.x.part").mkdir(parents=True)
    (tmp_path / "b" / ".gone.y.part").mkdir(parents=True)
    listing = os.scandir

    def scandir(path):
        if ".gone" in str(path):
            raise FileNotFoundError(path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = folders_below(tmp_path, ".*.part")
    assert tmp_path / "a" / ".map.x.part" in found
