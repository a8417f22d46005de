"""Runs that are killed, interrupted or find the disk full (killed.py says how)."""

import os
import random
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from lowbit import InputError
from lowbit.checkpoint.atomic_write import staged, staged_file
from tests.checkpoint import killed
from tests.checkpoint.killed import Case, kill, run


def writes_two_files(output):
    def job():
        with staged(output) as new:
            (new / "config.json").write_text("{}")
            (new / "model.safetensors").write_text("weights")

    return job


@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_any_point_leaves_the_output_absent_old_or_complete(old, tmp_path):
    case = Case(tmp_path, writes_two_files(tmp_path / "out"), "out", old)
    points = [*case.at_every_point(kill)]
    assert len(points) > 15
    assert not [each for each in points if each[1]]


def exhausted(job, bytes=1 << 16):
    """The error of a job where files end after so many bytes, as on a full disk."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))
        try:
            job()
        except InputError as error:
            os.write(2, str(error).encode())
            os._exit(7)

    status, said = run(limited)
    assert status >> 8 == 7, said
    return said


def test_a_disk_that_is_full_is_one_sentence_and_leaves_the_old_output(tmp_path):
    def folder():
        with staged(tmp_path / "out") as new:
            (new / "weights").write_bytes(b"x" * (1 << 17))

    def file():
        with staged_file(tmp_path / "out.json") as new:
            new.write_bytes(b"x" * (1 << 17))

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    (tmp_path / "out.json").write_text("old")
    before = killed.digest(tmp_path)
    for job in (folder, file):
        assert "cannot be written: File too large" in exhausted(job)
    assert killed.digest(tmp_path) == before


def full(job, disk, why):
    """The command `job` fails with one sentence and leaves nothing on `disk`."""
    status, said = run(job)
    assert status >> 8 == 1, said
    assert said.startswith(f"error: {disk}/out cannot be written: {why}"), said
    assert "Traceback" not in said and len(said.strip().split("\n")) == 1
    assert not [*disk.iterdir()]


def writing(verb, source, disk):
    return killed.lowbit(verb, source, "-o", disk / "out", "-q")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["quantize", "simulate"])
def test_the_command_says_that_a_file_may_not_grow(verb, tmp_path):
    source, disk = killed.save("gpt2", tmp_path / "float"), tmp_path / "disk"
    disk.mkdir()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
        writing(verb, source, disk)()

    full(limited, disk, "File too large; raise the limit")


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["quantize", "simulate"])
def test_the_command_says_that_a_disk_is_full(verb, tmp_path, small_disk):
    source = killed.save("gpt2", tmp_path / "float")
    job = writing(verb, source, small_disk)
    full(job, small_disk, "No space left on device; free space there")


@pytest.fixture(scope="module")
def streaming(tmp_path_factory) -> Case:
    folder: Path = tmp_path_factory.mktemp("runs")
    source = killed.save("gpt2", folder / "float")
    (folder / "runs").mkdir()
    options = ["--overwrite", "-q", "-o", folder / "runs" / "out"]
    return Case(folder / "runs", killed.lowbit("quantize", source, *options), "out", old=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_point_is_one_sentence_and_an_exit_code(number, streaming):
    points = [*streaming.at_every_point(lambda: os.kill(os.getpid(), number), number, step=12)]
    assert len(points) > 3
    assert not [each for each in points if each[1]]


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_its_output_absent_old_or_complete(streaming):
    runs = [*streaming.at_random(random.Random(0), 4)]
    assert not [each for each in runs if each[1]]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["streaming", "in memory", "journal", "search", "train"])
def test_fifty_kills_of_each_command_and_one_at_every_point(kind, tmp_path):
    for number, (name, case) in enumerate(killed.cases(tmp_path).items()):
        if name.startswith(kind):
            runs = [*case.at_random(random.Random(number), 50), *case.at_every_point(kill)]
            assert not [each for each in runs if each[1]], name
