"""Signals and imports of the command line, in processes of its own."""

import os
import re
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

# A script as pip writes it, and the module.
SCRIPT = "import sys; from lowbit.cli import main; sys.exit(main())"
STOPPING = (signal.SIGINT, signal.SIGTERM)
FORMS = ("script", "module")
EARLY, LATE = ("lowbit", "typer"), ("torch", "transformers.modeling_utils")
# What Python prints when it is asked which modules it imports, one a line, each when it is done.
IMPORTED = re.compile(r"import time: .*\| +(\S+)$")


@pytest.fixture
def start(tmp_path):
    """Starts the command line in one of its forms; its standard error names what it imports."""
    script = tmp_path / "bin" / "lowbit"
    script.parent.mkdir()
    script.write_text(SCRIPT)

    def begin(form, *arguments):
        program = [str(script)] if form == "script" else ["-m", "lowbit"]
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def imports(process):
    """The modules that a process imports, as it does, and the other lines between them as they
    are."""
    for line in process.stderr:
        found = IMPORTED.match(line.rstrip())
        yield (found[1], None) if found else (None, line)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *product(EARLY, STOPPING),
        *(pytest.param(late, signal.SIGINT, marks=pytest.mark.slow) for late in LATE),
    ],
)
def test_a_signal_during_imports_is_one_sentence(form, moment, number, start, tmp_path):
    with start(form, "quantize", tmp_path / "nowhere", "-o", tmp_path / "out") as process:
        lines = imports(process)
        assert any(name == moment for name, _ in lines)
        process.send_signal(number)
        said = [line for _, line in lines if line is not None and "import time:" not in line]
    assert process.returncode == 128 + number
    assert said == ["error: interrupted; nothing was begun\n"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arguments", [["--help"], [], ["run", "--", "true"]])
def test_what_needs_no_model_imports_no_torch(form, arguments, start):
    with start(form, *arguments) as process:
        names = {name for name, _ in imports(process)}
    assert "lowbit.cli" in names and not names & {"torch", "transformers", "numpy"}


def test_the_version_needs_no_transformers(start):
    with start("module", "--version") as process:
        names = {name for name, _ in imports(process)}
        assert process.stdout.read().startswith("lowbit ")
    assert "transformers" not in names


@pytest.mark.parametrize(
    ("program", "kept"),
    [
        (["{folder}/program.py"], True),
        (["-m", "program", "-m", "lowbit"], True),
        (["{folder}/lowbit"], False),
    ],
)
def test_a_program_that_imports_lowbit_keeps_its_signals(program, kept, tmp_path):
    code = (
        # Python's own handler, or none if whoever runs the tests ignores the signal.
        "import signal; before = signal.getsignal(signal.SIGINT); import lowbit\n"
        "print(signal.getsignal(signal.SIGINT) is before)"
    )
    for name in ("program.py", "lowbit"):
        (tmp_path / name).write_text(code)
    given = [part.format(folder=tmp_path) for part in program]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *given],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=Path(tmp_path.root),
    )
    assert done.stdout == f"{kept}\n", done.stderr


DELETED = """
import os, signal, time
from lowbit import launch

class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

launch.unwind()
held = Held()
del held
time.sleep(30)
print("went on")
"""


def test_a_signal_while_an_object_is_deleted_is_not_lost():
    command = [sys.executable, "-c", DELETED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
