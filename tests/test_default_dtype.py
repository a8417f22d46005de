"""torch.set_default_dtype is the user's, and changes no code that is stored."""

import subprocess
import sys

import pytest
import torch

import lowbit
from lowbit.qat.prepare import QatOptions, finish_qat, prepare_qat
from lowbit.solvers import Solver
from tests.combinations import some
from tests.models import make

DTYPES = [torch.float64, torch.bfloat16]


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def ids():
    return torch.arange(3, 35).reshape(2, 16) * 5 % 200


def stored(run, dtype, default_dtype):
    model = make("bert")
    default_dtype(dtype)
    run(model)
    default_dtype(torch.float32)
    return model.state_dict()


def qat(recipe, options):
    def run(model):
        prepare_qat(model, recipe, options)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for _ in range(2):
            model(ids())
        finish_qat(model, progress=False)

    return run


def solved(recipe, solver, data=True, **options):
    def run(model):
        lowbit.quantize(
            model,
            recipe,
            calibration=ids() if data else None,
            solver=Solver(solver, options, tune=int(solver == "hqq")),
            progress=False,
        )

    return run


RUNS = [
    qat("int8-static", QatOptions()),
    qat("int8-static", QatOptions(ranges="percentile")),
    qat("int8-static", QatOptions(ranges="ema")),
    qat("int4-all-static", QatOptions("lsq", "learned")),
    solved("int8-static", "nearest"),
    solved("int4-all", "gptq"),
    solved("int4", "hqq"),
    solved("int4", "awq"),
    solved("int4", "autoround", iterations=2),
    solved("bcq2", "binary"),
    solved("bcq3-all", "nearest", data=False),
]


@pytest.mark.parametrize(("run", "dtype"), some(RUNS, DTYPES))
def test_what_is_stored_does_not_depend_on_it(run, dtype, default_dtype):
    expected = stored(run, torch.float32, default_dtype)
    found = stored(run, dtype, default_dtype)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


@pytest.mark.nightly
def test_nor_on_what_it_is_while_lowbit_is_imported():
    program = (
        "import torch; torch.set_default_dtype(torch.bfloat16)\n"
        "from lowbit.schemes.levels import GRID_SHARES\n"
        "from lowbit.solvers.affine_grid import SHARES\n"
        "print(GRID_SHARES, SHARES)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    shares = [torch.linspace(*ends, n).tolist() for *ends, n in ((0.3, 1.0, 10), (1.0, 0.4, 13))]
    assert found.stdout.strip() == f"{shares[0]} {shares[1]}", found.stderr
