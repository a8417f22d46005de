"""What a killed run left is undone by the next run of the same output, and nothing else is."""

import errno
import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from lowbit import InputError, UsageError
from lowbit.checkpoint.atomic_write import check_output, staged, staged_file
from lowbit.checkpoint.work_folder import claimed, tidy, work_folder


def killed_between_the_renames(output):
    """A run that replaces `output` and dies when it is under its hidden name."""
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def dying(self, target):
            rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.rename = dying
        write(output, "new")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def folder(path, text):
    path.mkdir()
    (path / text).write_text(text)
    return path


def write(output, text):
    with staged(output) as new:
        (new / text).write_text(text)


def test_an_old_output_that_nothing_replaced_is_put_back(tmp_path):
    out = folder(tmp_path / "out", "old")
    killed_between_the_renames(out)
    assert not out.exists() and (work_folder(out) / "old" / "old").exists()
    with pytest.raises(UsageError, match="exists and is not empty"):
        check_output(out, overwrite=False, source=None)
    assert [f.name for f in out.iterdir()] == ["old"]
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_work_folder_is_that_of_one_output_only(tmp_path):
    names = ["model", "model.v2", ".model", "model.lowbit", ".model.lowbit", "m" * 255, "m" * 254]
    assert len({work_folder(tmp_path / name) for name in names}) == len(names)
    folder(tmp_path / "model.v2", "old")
    killed_between_the_renames(tmp_path / "model.v2")
    left = work_folder(tmp_path / "model.v2")
    write(tmp_path / "model", "new")
    assert (left / "old" / "old").exists()
    write(tmp_path / "model.v2", "newer")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model", "model.v2"]


def test_the_longest_name_can_be_written(tmp_path):
    write(tmp_path / ("m" * 255), "new")
    assert [f.name for f in tmp_path.iterdir()] == ["m" * 255]


@pytest.mark.parametrize("strange", ["mine.txt", "new", "old"])
def test_a_folder_that_is_not_ours_is_left_alone(strange, tmp_path):
    mine = folder(tmp_path / ".out.lowbit", strange)
    with pytest.raises(UsageError, match="in the way"):
        write(tmp_path / "out", "new")
    assert [f.name for f in mine.iterdir()] == [strange] and not (tmp_path / "out").exists()


def test_a_folder_of_another_output_is_not_ours(tmp_path):
    out = folder(tmp_path / "out", "old")
    killed_between_the_renames(out)
    work_folder(out).rename(work_folder(tmp_path / "other"))
    with pytest.raises(UsageError, match="in the way"):
        write(tmp_path / "other", "new")
    assert (work_folder(tmp_path / "other") / "old" / "old").exists()


@pytest.mark.parametrize("owner", [b"", b"lowbit wri"])
def test_a_run_that_was_killed_at_its_beginning_is_in_nobodys_way(owner, tmp_path):
    folder(tmp_path / ".out.lowbit", "owner.txt").joinpath("owner.txt").write_bytes(owner)
    write(tmp_path / "out", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_second_run_of_one_output_is_told_at_once(tmp_path):
    out = tmp_path / "out"
    with staged(out) as new:
        child = os.fork()
        if child == 0:
            try:
                os.closerange(3, 1000)  # a run of its own
                write(out, "second")
            except UsageError as error:
                os._exit(7 if "another run writes" in str(error) else 1)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] >> 8 == 7
        with pytest.raises(UsageError, match="another run writes"):
            _in_a_thread(lambda: check_output(out, overwrite=True, source=None))
        (new / "first").touch()
    assert [f.name for f in out.iterdir()] == ["first"]
    write(out, "third")


def _in_a_thread(call):
    errors = []

    def run():
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_a_run_that_claimed_its_output_writes_it(tmp_path):
    out = tmp_path / "out"
    with claimed(out):
        write(out, "one")
        write(out, "two")
        with staged_file(tmp_path / "file") as new:
            new.write_text("file")
    assert [f.name for f in out.iterdir()] == ["two"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "out"]


def test_many_runs_of_one_output_end_with_one_of_them(tmp_path):
    """Each either writes all of it or is told."""
    out, done, told = tmp_path / "out", [], []

    def run(number):
        for turn in range(30):
            try:
                write(out, f"{number}-{turn}")
                done.append(1)
            except UsageError as error:
                told.append(str(error))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done and len(done) + len(told) == 4 * 30
    assert all("another run writes" in sentence for sentence in told)
    assert len(list(out.iterdir())) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks_is_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "out", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_vanishes_while_it_is_written_is_one_sentence(tmp_path):
    out = folder(tmp_path / "out", "old")
    with pytest.raises(InputError, match="vanished"), staged(out) as new:
        new.rmdir()
        new.mkdir()
        # Another folder in the same place, with less in it.
    assert [f.name for f in out.iterdir()] == ["old"]
    with pytest.raises(InputError, match="cannot be written: No such file"), staged(out) as new:
        new.rmdir()
        (new / "file").write_text("x")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_folders_above_that_were_made_go_with_a_failure(tmp_path):
    with pytest.raises(KeyError), staged(tmp_path / "a" / "b" / "out"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a" / "b" / "out", "new")
    assert (tmp_path / "a" / "b" / "out" / "new").exists()


def test_errors_of_what_is_read_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out"):
        (tmp_path / "no such source").read_text()


def test_a_folder_of_outputs_is_tidied(tmp_path):
    for name in ("a", "b"):
        folder(tmp_path / name, "old")
        killed_between_the_renames(tmp_path / name)
    folder(tmp_path / ".mine.lowbit", "mine")
    tidy(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [".mine.lowbit", "a", "b"]


def test_a_read_only_folder_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refuse)  # permissions do not stop root
        with pytest.raises(InputError, match="cannot be written: Read-only file system"):
            write(tmp_path / "out", "new")
    assert not list(tmp_path.iterdir())
