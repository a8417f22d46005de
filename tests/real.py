"""Real data and models, which lie outside the repository; where they are absent a test skips."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


def data(*names):
    return _present(Path(os.environ.get("LOWBIT_DATA", SHARED / "data")).joinpath(*names))


def model(*names):
    return _present(Path(os.environ.get("LOWBIT_MODELS", SHARED / "models")).joinpath(*names))


def _present(path):
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path
