"""`lowbit run`: any Python program, unchanged, with lowbit imported in it."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from lowbit.cli.run import environment


@pytest.fixture
def start(tmp_path):
    """Starts a program in an environment whose transformers and lowbit say that they are imported,
    and when; returns what has ended."""
    packages = tmp_path / "packages"
    for name, text in {
        "transformers/__init__.py": "print('transformers', end=' ')",
        "transformers/models.py": "import sys; print('lowbit' in sys.modules)",
        "lowbit.py": "import transformers; print('lowbit', end=' ')",
    }.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)

    def run(*program, **before):
        path = os.pathsep.join([*before.pop("path", ()), str(packages)])
        variables = environment({**os.environ, "PYTHONPATH": path, **before})
        return subprocess.run(program, env=variables, capture_output=True, text=True)

    return run


def python(start, code, *arguments, **before):
    return start(sys.executable, "-c", textwrap.dedent(code), *arguments, **before)


def test_lowbit_is_imported_right_after_transformers(start):
    assert python(start, "import transformers.models").stdout == "transformers lowbit True\n"
    assert python(start, "from transformers import models").stdout == "transformers lowbit True\n"


def test_a_program_that_imports_lowbit_itself_imports_it_once(start):
    assert python(start, "import lowbit").stdout == "transformers lowbit "


def test_a_program_without_transformers_pays_nothing(start):
    code = "import sys; print([m for m in ('lowbit', 'transformers', 'torch') if m in sys.modules])"
    assert python(start, code).stdout == "[]\n"


def test_what_adapts_quantized_models_is_imported_after_peft(start, tmp_path):
    for name, text in {
        "peft.py": "import transformers; print('peft', end=' ')",
        "lowbit/__init__.py": "print('lowbit', end=' ')",
        "lowbit/peft.py": "import peft; print(peft.__name__, 'adapted')",
    }.items():
        (tmp_path / "packages" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "packages" / name).write_text(text)
    ended = python(start, "import peft")
    assert (ended.stdout, ended.stderr) == ("transformers lowbit peft peft adapted\n", "")


def test_looking_for_transformers_without_importing_it_changes_nothing(start):
    code = """
        from importlib.util import find_spec
        assert find_spec("transformers").name == find_spec("transformers").name == "transformers"
        print("before", end=" ")
        import transformers.models
    """
    assert python(start, code).stdout == "before transformers lowbit True\n"


def test_scripts_modules_and_console_scripts_are_served(start, tmp_path):
    script = tmp_path / "program"
    script.write_text(
        f"#!{sys.executable}\nimport sys, transformers.models\nsys.exit(len(sys.argv))"
    )
    script.chmod(0o755)
    for program in (
        [sys.executable, script, "a", "b"],
        [script, "a", "b"],
    ):
        ended = start(*map(str, program))
        assert (ended.stdout, ended.returncode) == ("transformers lowbit True\n", 3)
    assert start(sys.executable, "-m", "transformers.models").stdout.startswith(
        "transformers lowbit True"
    )


def test_child_processes_are_served(start):
    code = """
        import multiprocessing, subprocess, sys
        subprocess.run([sys.executable, "-c", "import transformers.models"])
    """
    assert python(start, code).stdout == "transformers lowbit True\n"


def test_a_sitecustomize_that_was_there_still_runs(start, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("mine = True; print('mine', end=' ')")
    code = "import sitecustomize, transformers.models; assert sitecustomize.mine"
    ended = python(start, code, path=[str(tmp_path / "site")])
    assert (ended.stdout, ended.stderr) == ("mine transformers lowbit True\n", "")


def test_a_python_without_lowbit_stops_with_a_sentence(start, tmp_path):
    (tmp_path / "packages" / "lowbit.py").unlink()
    code = """
        try:
            import transformers
        except Exception:
            pass
        print("goes on")
    """
    ended = start(sys.executable, "-S", "-c", "import sitecustomize\n" + textwrap.dedent(code))
    assert ended.returncode == 1 and "has no lowbit: install it there" in ended.stderr
    assert "goes on" not in ended.stdout


def test_exit_code_signal_and_arguments_are_the_programs():
    """Through the command line itself."""
    lowbit = [sys.executable, "-m", "lowbit", "run"]
    code = "import sys, os; print(sys.argv[1:], flush=True); os.kill(os.getpid(), 15)"
    ended = subprocess.run(
        [*lowbit, "--", sys.executable, "-c", code, "--json", "--", "-o"],
        capture_output=True,
        text=True,
    )
    assert (ended.stdout, ended.returncode) == ("['--json', '--', '-o']\n", -signal.SIGTERM)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("no-such-program", "there is no program"),
        ("{script}", "lowbit run -- python"),
        ("", "cannot be run: an empty name"),
        ("a\0b", "cannot be run: an empty name, or a null"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(program, sentence, lowbit, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("pass")
    code, out, err = lowbit("run", "--", program.format(script=script))
    assert code == 2 and sentence in err and not out
