"""`lowbit --version`, and what is said where native kernels are missing."""

import importlib.metadata

import pytest

from lowbit.inspect.environment import describe
from lowbit.kernels import native
from tests.models import make

REASON = "lowbit was installed without its compiled kernels (no compiler)"


@pytest.fixture
def without_native(monkeypatch):
    """What `native` says of itself where lowbit was installed without a compiler."""
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "_reason", REASON)
    monkeypatch.setattr(native, "_features", frozenset())
    monkeypatch.setattr(native, "_targets", {})


def told_by(lowbit):
    code, out, err = lowbit("--version")
    assert (code, err) == (0, "") and out.endswith("\n")
    versions, kernels = out.rstrip().split(", native kernels: ")
    packages = ("lowbit", "torch", "transformers")
    assert versions == ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return kernels


@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
def test_version_names_the_native_kernels_that_run_here_best_first(lowbit):
    names = told_by(lowbit).split(", ")
    assert names[-1] == "scalar"
    runnable = {p.name for p in native.targets("linear") if native.lacks(p.feature) is None}
    assert runnable <= set(names) <= set(native.target_names())
    assert names == sorted(names, key=native.target_names().index)


def test_version_says_why_there_are_none(lowbit, without_native):
    assert told_by(lowbit) == f"none: {REASON}"


def test_the_record_of_a_measurement_says_it_too(without_native):
    assert describe()["native kernels"] == f"none: {REASON}"


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_inspect_says_that_operators_run_in_pytorch(lowbit, tmp_path, monkeypatch, options):
    make("gpt2").save_pretrained(tmp_path / "float")
    lowbit("quantize", tmp_path / "float", "-o", tmp_path / "out", "-q")
    assert native.available() == ("PyTorch" not in lowbit("inspect", tmp_path / "out", *options)[1])
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "reason", lambda: REASON)
    assert f"runs in PyTorch, which is slow: {REASON}." in lowbit(
        "inspect", tmp_path / "out", *options
    )[1].replace("\n", " ")
