"""What the tools themselves write comes in: each decodes its own files, and so do we, alike."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.interop.bitsandbytes import READER
from tests.folders import save
from tests.interop.stands_for import assert_holds

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGES = {"auto_round": "auto-round", "torchao": "torchao", "bitsandbytes": "bitsandbytes"}


def made_by(tool, tmp_path):
    """The folders that a tool made, and what their weights stand for."""
    if find_spec(tool) is None:
        pytest.skip(f"{PACKAGES[tool]} is not installed: pip install {PACKAGES[tool]}")
    save("llama-untied", tmp_path / "float")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.interop.real_tools", tool, tmp_path / "float", tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for file in sorted(tmp_path.glob("*.npz")):
        with np.load(file) as arrays:
            yield file.with_suffix(""), dict(arrays)


@pytest.mark.parametrize("tool", ["auto_round", "torchao"])
def test_codes_of_the_tool_are_taken_over_exactly(tool, tmp_path):
    kinds = dict(made_by(tool, tmp_path))
    assert len(kinds) >= 3
    for folder, weights in kinds.items():
        lowbit.import_checkpoint(folder, tmp_path / "out", progress=False, overwrite=True)
        assert_holds(tmp_path / "out", weights)


def test_weights_of_bitsandbytes_are_decoded_as_it_does_and_quantized_again(tmp_path):
    for folder, weights in made_by("bitsandbytes", tmp_path):
        with pytest.raises(lowbit.InputError, match=f"{folder.name[:3].upper()} of bitsandbytes"):
            lowbit.import_checkpoint(folder, tmp_path / "refused")
        result = lowbit.import_checkpoint(
            folder, tmp_path / "out", "int8", progress=False, overwrite=True
        )
        assert len(result.errors) == len(weights)
        assert f"{len(weights)} weights" in result.notes[0]
        with READER.open(folder, True) as source:
            for name, weight in weights.items():
                found = source.floats[f"{name}.weight"][...].numpy()
                # Nested scales are a sum of a product, which may be rounded once or twice.
                tolerance = 1e-6 if "nested" in folder.name else 0
                np.testing.assert_allclose(found, weight, rtol=tolerance, atol=0, err_msg=name)
