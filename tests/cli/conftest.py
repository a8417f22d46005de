import sys

import pytest

from lowbit.cli import main


@pytest.fixture
def lowbit(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    # The handlers of the command line are for a process of its own.
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    # Wide enough that no cell is folded.
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run
