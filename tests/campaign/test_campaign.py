"""Damaged files of every kind: a sentence, equal numbers, or a hash that tells; nothing else."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

import lowbit
from tests.campaign.runner import (
    BAD,
    SECONDS,
    Case,
    Outcome,
    campaign,
    table,
    wrong,
)
from tests.campaign.specimens import CommandError, Target, Verb, make_all, quantized_module

BY_DAY, NIGHTLY, COMMANDS = 150, 10_000, 300


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    root = tmp_path_factory.mktemp("campaign") / "specimens"
    root.mkdir()
    make_all(root)
    return root


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A folder in the place of the specimens, with a saved module and a file of no meaning."""
    root = tmp_path_factory.mktemp("module")
    lowbit.save(quantized_module(), root / "module")
    (root / "module" / "notes.txt").write_text("one\n")
    return root


@pytest.mark.slow
def test_150_damaged_files_are_told_apart(tmp_path):
    """In a process of their own, in which annotations are not checked at every call."""
    command = [sys.executable, "-m", "tests.campaign", "--quick", f"--count={BY_DAY}"]
    subprocess.run([*command, f"--out={tmp_path / 'cases'}"], check=True)
    lines = (tmp_path / "cases").read_text().splitlines()
    found = [Outcome(**json.loads(line)) for line in lines]
    assert len(found) == BY_DAY and len({o.target for o in found}) > 20
    assert not wrong(found)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_10_000_damaged_files_are_told_apart(specimens):
    found = list(campaign(specimens, range(BY_DAY, BY_DAY + NIGHTLY)))
    print(table(found))
    assert len(found) == NIGHTLY and not wrong(found)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_commands_of_their_own_process_say_the_same():
    command = [sys.executable, "-m", "tests.campaign.commands", f"--count={COMMANDS}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"{COMMANDS} commands, 0 with faults" in done.stdout, (
        done.stdout
    )


def hang(folder, scratch):
    while True:
        pass


def leave(folder, scratch):
    os._exit(3)


def swallow(folder, scratch):
    assert b"x" * (400 << 20)
    return []


def write_outside(folder, scratch):
    with contextlib.suppress(OSError):
        os.mkdir("/proc/outside")
    return []


def run_code(folder, scratch):
    (folder.parents[1] / "CANARY").touch()
    return []


def raise_error(folder, scratch):
    raise KeyError("weight_map")


def order(folder, scratch):
    raise CommandError(1, "error: a name \x1b[2J that orders a terminal about")


def other_numbers(folder, scratch):
    return ["other numbers"]


FAULTS = {
    "hang": hang,
    "died": leave,
    "memory": swallow,
    "outside": write_outside,
    "code": run_code,
    "traceback": raise_error,
    "terminal": order,
    "silent": other_numbers,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(fault, module, monkeypatch):
    """A verb with the fault stands for code that has it."""

    def verb(folder, scratch):
        # Undamaged files are read first, to know what is right.
        if "right" in folder.parts:
            return []
        return FAULTS[fault](folder, scratch)

    def one(number: int, quick: bool = False) -> Case:
        kinds = (lambda random, stored: stored + b"\n",)
        target = Target("notes", "module", "notes.txt", kinds, (), hashed=True)
        return Case(number, target, Verb("a verb", verb), 0, None)

    monkeypatch.setattr("tests.campaign.runner.case", one)
    # Long enough for a busy machine, except where it is waited for.
    monkeypatch.setattr("tests.campaign.runner.SECONDS", 0.5 if fault == "hang" else 5)
    outcomes: list[Outcome] = list(campaign(module, range(2)))
    assert [o.found for o in outcomes] == [fault, fault] and fault in BAD
    assert len(wrong(outcomes)) == 2 and SECONDS > 5
