import sys

import pytest

from lowbit.cli import main


@pytest.fixture
def lowbit(request, monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    if not request.node.get_closest_marker("slow"):
        # The process that measures peak memory imports torch: seconds for each model.
        monkeypatch.setattr("lowbit.evaluation.record.peak_bytes", lambda folder: 400 << 20)

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
