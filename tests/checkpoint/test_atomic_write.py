"""Output folders appear whole or not at all."""

import errno
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from lowbit import InputError, UsageError
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


@contextmanager
def mounted(kind, options, folder):
    """A file system of its own in `folder`."""
    folder.mkdir()
    command = ["mount", "-t", kind, *(["-o", options] if options else []), kind, str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def write(output, name):
    with staged(output) as folder:
        (folder / name).write_text(name)


def test_an_output_on_another_file_system_appears_and_is_replaced(tmp_path):
    with mounted("tmpfs", "", tmp_path / "a") as one, mounted("tmpfs", "", tmp_path / "b") as other:
        (one / "link").symlink_to(other / "out")
        for name in ("first", "second"):
            write(one / "link", name)
            assert [f.name for f in (one / "link").iterdir()] == [name]
        assert [f.name for f in other.iterdir()] == ["out"]
        assert (one / "link").is_symlink() and len(list(one.iterdir())) == 1


TOLD = "out cannot be written: Invalid cross-device link; what is there cannot be moved: remove it"


def test_a_folder_that_cannot_be_moved_stays_and_is_one_sentence(tmp_path):
    """As in a container whose image has the output."""
    with mounted("tmpfs", "", tmp_path / "disk") as disk:
        for name in ("lower/out", "upper", "work"):
            (disk / name).mkdir(parents=True)
        (disk / "lower" / "out" / "old").touch()
        layers = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
        with mounted("overlay", layers, tmp_path / "seen") as seen:
            with pytest.raises(InputError, match=TOLD):
                write(seen / "out", "new")
            assert [f.name for f in seen.iterdir()] == ["out"]
            assert [f.name for f in (seen / "out").iterdir()] == ["old"]
            write(seen / "other", "new")


@pytest.mark.parametrize("refused", ["out", "new"])
def test_a_rename_that_is_refused_leaves_the_old_output(refused, tmp_path, monkeypatch):
    """Of the old folder, and of the new one after it."""
    write(tmp_path / "out", "old")
    rename = Path.rename

    def refuse(self, target):
        if self.name == refused:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self), None, str(target))
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(InputError, match=TOLD):
            write(tmp_path / "out", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["old"]
