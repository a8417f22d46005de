"""Peak memory of loading and running a model, as the operating system reports it.

A new process loads the folder and runs it once. Its memory before loading (libraries, interpreter)
is subtracted. Linux only: /proc/self/status has the peak memory of a process.
"""

import json
import subprocess
import sys
from pathlib import Path

from lowbit.errors import InputError

STATUS = Path("/proc/self/status")
MARKS = Path("/proc/self/clear_refs")


def peak_bytes(folder: str | Path) -> int | None:
    """Peak bytes; None if the system does not report them. Raises InputError if the process
    fails."""
    if not STATUS.is_file():
        return None
    # -P: import nothing from the current folder, which may be a model's folder.
    command = [sys.executable, "-P", "-m", __name__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{folder} could not be loaded and run in a new process: {last}")
    told: int | None = json.loads(done.stdout.splitlines()[-1])
    return told


def _kibibytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise OSError(f"{STATUS} does not tell {field}")


def _main(folder: str) -> None:
    from lowbit.checkpoint.load import load_model
    from lowbit.inspect.checkpoint import run_once

    try:
        before = _kibibytes("VmRSS")
        # Imports may have had a higher peak: 5 resets the peak to the resident memory.
        MARKS.write_text("5")
    except OSError:
        # Some containers hide these files or make them read-only.
        print(json.dumps(None))
        return
    run_once(load_model(folder))
    print(1024 * (_kibibytes("VmHWM") - before))


if __name__ == "__main__":
    _main(sys.argv[1])
