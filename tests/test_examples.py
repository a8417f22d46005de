"""The examples run, and their notebooks are what the scripts say."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
LARGEST = 500_000  # bytes of a notebook
BY_DAY = dict.fromkeys(("bcq_matrix", "gpt2_8bit"), "slow")  # others take half a minute and more
NEEDS = {"gpt2_qlora": "peft"}  # packages that are in no dependency

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def notebook_of(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def outputs(script):
    return [output for cell in notebook_of(script).cells for output in cell.get("outputs", ())]


def test_there_is_a_script_for_every_notebook():
    notebooks = sorted((ROOT / "examples").glob("*.ipynb"))
    assert SCRIPTS and [path.stem for path in notebooks] == [path.stem for path in SCRIPTS]


@each
def test_the_cells_of_a_notebook_are_those_of_its_script(script):
    def cells(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert cells(notebook_of(script)) == cells(jupytext.read(script)), "run scripts/notebooks"


@each
def test_a_notebook_was_run_from_top_to_bottom(script):
    counts = [c.execution_count for c in notebook_of(script).cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert all(output.output_type != "error" for output in outputs(script))


@each
def test_a_notebook_shows_pictures_and_stays_small(script):
    assert any("image/png" in output.get("data", {}) for output in outputs(script))
    assert script.with_suffix(".ipynb").stat().st_size <= LARGEST


@each
def test_a_notebook_names_no_folder_of_the_machine_that_ran_it(script):
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert not [path for path in (str(ROOT), sys.prefix, "/tmp/", "/home/") if path in text]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            path, id=path.stem, marks=getattr(pytest.mark, BY_DAY.get(path.stem, "nightly"))
        )
        for path in SCRIPTS
    ],
)
def test_a_script_runs_and_what_it_asserts_holds(script):
    if package := NEEDS.get(script.stem):
        pytest.importorskip(package, reason=f"{script.stem} needs the package {package}")
    # Threads that spin while they wait for each other starve on a machine that has other work.
    quiet = {"MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, script],
        cwd=script.parent,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
