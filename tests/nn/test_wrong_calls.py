"""Whatever a module is given or made to hold, it answers: native code takes no address of what does
not fit (wrong_calls.py says how that is found out)."""

import subprocess
import sys

import pytest
import torch

import lowbit
from lowbit.formats import CHANNEL
from lowbit.kernels import native
from lowbit.nn import QuantEmbedding
from lowbit.schemes import Absmax

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")


@pytest.mark.parametrize(
    "calls",
    [pytest.param(30, marks=pytest.mark.slow), pytest.param(3000, marks=pytest.mark.nightly)],
)
def test_wrong_calls_are_refused(calls):
    """In a process of their own, in which annotations are not checked at every call."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.nn.wrong_calls", "--list"]
    done = subprocess.run(
        [*command, f"--calls={calls}", "--seed=1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total = done.stdout.splitlines()
    assert total.startswith(f"all {5 * calls} ")


def test_codes_of_another_shape_are_told_before_they_are_packed():
    q = Absmax(8, CHANNEL).quantize(torch.randn(48, 64))
    table = QuantEmbedding(q.layout, 48, 64).hold(q)
    table.codes = table.codes[:, :31]
    with pytest.raises(lowbit.UsageError, match=r"codes is torch.int8 \[48, 31\] .*\[48, 64\]"):
        table(torch.tensor([0]))


@pytest.mark.parametrize("reference", [False, True])
def test_row_numbers_that_are_no_integers_are_told(reference, monkeypatch):
    monkeypatch.setenv("LOWBIT_KERNEL", "reference" if reference else "")
    q = Absmax(8, CHANNEL).quantize(torch.randn(48, 64))
    with pytest.raises(lowbit.UsageError, match="ids .* is torch.float32, none of int64"):
        QuantEmbedding(q.layout, 48, 64).hold(q)(torch.tensor([0.5]))
