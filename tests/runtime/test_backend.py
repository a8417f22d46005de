"""backend_cases.py, in a process of its own: the shape checks that tests put around functions
cannot be traced."""

import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.kernels import native

CASES = Path(__file__).with_name("backend_cases.py")


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason=native.reason())
def test_torch_compile_runs_programs():
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(CASES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
