"""Output folders appear whole or not at all."""

import os
from pathlib import Path

import pytest

from lowbit import UsageError
from lowbit.checkpoint.atomic_write import check_output, staged


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with staged(out) as folder:
        (folder / "file").write_text("new")
        assert not out.exists()
    assert (out / "file").read_text() == "new"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_a_failure(error, tmp_path):
    with pytest.raises(error), staged(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_an_old_folder_is_replaced_as_a_whole_or_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError), staged(out) as folder:
        (folder / "new").write_text("half")
        raise ValueError
    assert [p.name for p in out.iterdir()] == ["old"]
    with staged(out) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in out.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        with staged(tmp_path / "out") as folder:
            file = folder / "model.safetensors"
            file.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_empty_folder_may_be_written_to(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    check_output(out, overwrite=False, source=tmp_path / "float")


def test_a_symbolic_link_to_the_source_is_seen_through(tmp_path):
    (tmp_path / "float").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "float")
    with pytest.raises(UsageError, match="is or holds the model"):
        check_output(tmp_path / "out", overwrite=True, source=tmp_path / "float")


def test_what_a_symbolic_link_points_to_is_replaced(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "disk" / "real")
    with staged(out) as folder:
        (folder / "new").write_text("new")
    assert out.is_symlink() and (tmp_path / "disk" / "real" / "new").read_text() == "new"
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]


def test_the_current_folder_and_a_mount_point_are_refused(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="current folder"):
        check_output(Path("."), overwrite=False, source=tmp_path / "float")
    with pytest.raises(UsageError, match="mount point"):
        check_output(Path("/proc"), overwrite=True, source=tmp_path / "float")
