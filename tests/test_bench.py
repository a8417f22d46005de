"""Scripts of bench/: what they import exists, and their pages are rendered from committed rows."""

import ast
import importlib
import importlib.util
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports a script of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module
    for script in BENCH.glob("*.py"):
        sys.modules.pop(script.stem, None)


def test_what_scripts_import_from_lowbit_exists():
    absent = []
    for script in sorted(BENCH.glob("*.py")):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowbit"):
                module = importlib.import_module(str(node.module))
                names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                for name in names:
                    if importlib.util.find_spec(f"{node.module}.{name}") is None:
                        absent.append(f"{script.name}: {node.module}.{name}")
    assert not absent


def test_pages_of_training_are_rendered_from_their_rows(bench, tmp_path):
    base = bench("qat_base")
    rows = base.Pieces(ROOT / "docs/results/qat-base.jsonl")
    studies = base.studies(tmp_path / "model", None, tmp_path, tmp_path, rows)
    page = (ROOT / "docs/results/qat-base.md").read_text(encoding="utf-8").splitlines()
    assert list(lines(base.page(studies, rows))) == page

    ner = bench("ner")
    rows = ner.Pieces(ROOT / "docs/results/ner.jsonl")
    page = (ROOT / "docs/results/ner.md").read_text(encoding="utf-8").splitlines()
    assert list(lines(ner.page(ner.studies(tmp_path, None, rows)))) == page

    translation = bench("translation")
    given = translation.arguments(["--work", str(tmp_path)])
    rows = translation.Pieces(ROOT / "docs/results/translation.jsonl")
    # Whatever a run is about, no corpus leaves the page.
    runs = translation.runs_of(given, rows, translation.on_the_page(rows, ["spa-eng"]))
    page = (ROOT / "docs/results/translation.md").read_text(encoding="utf-8").splitlines()
    assert list(lines(translation.page(runs, rows, given))) == page


def lines(page):
    return "\n".join(page).split("\n")


def test_a_piece_is_found_once_and_keeps_the_machine_that_found_it(bench, tmp_path, monkeypatch):
    """Whatever machine goes on."""
    pieces = bench("pieces")
    machine = {"processor": "first", "threads": "1 thread", "lowbit": "abc", "torch": "2"}
    monkeypatch.setattr(pieces, "where", lambda: machine)
    file = tmp_path / "rows.jsonl"
    assert pieces.Pieces(file).find("a", lambda: [1]) == [1]
    monkeypatch.setattr(pieces, "where", lambda: {**machine, "processor": "second"})
    with file.open("a") as torn:
        torn.write(json.dumps({"name": "b"})[:5])
    again = pieces.Pieces(file)
    assert again.find("a", lambda: pytest.fail("it is known")) == [1]
    assert again.find("b", lambda: 2) == 2
    assert [pieces.Pieces(file).letter(name) for name in "ab"] == ["A", "B"]
    assert "- B: second, 1 thread; lowbit abc, torch 2." in again.legend()


def test_an_engine_apart_is_stopped_while_another_has_its_turn(bench):
    """Its threads would take processors from it."""
    turns, apart = bench("turns"), bench("apart")
    engine = apart.Apart(1, partial, os.getpid)
    try:
        process = psutil.Process(engine())
        assert process.status() != psutil.STATUS_STOPPED
        turns.seconds(lambda: stops(process))
        with pytest.raises(ZeroDivisionError):
            turns.seconds(lambda: 1 / 0)
        assert 0 < turns.seconds(engine.timed) < 60
        assert process.status() != psutil.STATUS_STOPPED
    finally:
        engine.close()
    assert not process.is_running()
    assert turns.seconds(time.perf_counter) < 60


BUSY = "import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: pass"
LEAVES_A_PROCESS = f"""
(__import__("subprocess").Popen([{sys.executable!r}, "-c", {BUSY!r}]), __import__("os").getpid)[1]
"""


def test_an_engine_is_measured_when_the_processes_it_leaves_behind_are_idle(bench):
    engine = bench("apart").Apart(1, eval, LEAVES_A_PROCESS.strip())
    try:
        (left,) = psutil.Process(engine()).children()
        assert left.status() == psutil.STATUS_ZOMBIE
    finally:
        engine.close()


def stops(process, seconds=10):
    end = time.monotonic() + seconds
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end, process.status()
        time.sleep(0.01)
