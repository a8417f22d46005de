"""Data flows one way: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# folder or module -> the only parts of lowbit that it may import (itself included)
ONLY = {
    "lowbit.schemes": {"lowbit.schemes", "lowbit.formats", "lowbit.packing", "lowbit.errors"},
    "lowbit.nn": {
        "lowbit.nn",
        "lowbit.formats",
        "lowbit.kernels",
        "lowbit.errors",
        "lowbit.fallbacks",
    },
    "lowbit.formats": {"lowbit.formats", "lowbit.packing", "lowbit.errors"},
    "lowbit.data": {"lowbit.data", "lowbit.errors", "lowbit.extras"},
    "lowbit.report": {
        "lowbit.report",
        "lowbit.evaluation.study",
        "lowbit.errors",
        "lowbit.staging",
    },
}
# folder -> what lies after it on the way from checkpoint to report
NEVER = {
    "lowbit.kernels": {"lowbit.schemes", "lowbit.nn", "lowbit.convert", "lowbit.hub"},
    "lowbit.qat": {"lowbit.training", "lowbit.evaluation", "lowbit.report", "lowbit.demo"},
    "lowbit.evaluation": {"lowbit.training", "lowbit.report", "lowbit.demo"},
    "lowbit.training": {"lowbit.report", "lowbit.demo"},
}
COMMAND_LINE = {"lowbit.cli", "lowbit.__main__"}


def within(module, parts):
    return any(module == part or module.startswith(part + ".") for part in parts)


def module_name(path):
    names = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(source, module, is_package):
    """The lowbit modules that `source` names in its imports, anywhere in it."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from lowbit import x` may name a module; from deeper down, the origin decides.
            deep = origin.count(".") > 0 or not within(origin, {"lowbit"})
            found |= {origin} if deep else {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in found if within(name, {"lowbit"})}


def graph():
    files = sorted(SOURCE.glob("lowbit/**/*.py"))
    return {
        module_name(path): imports(path.read_text(), module_name(path), path.name == "__init__.py")
        for path in files
    }


def test_the_graph_is_that_of_the_whole_package():
    modules = graph()
    assert {"lowbit.errors", "lowbit.kernels.selection"} <= modules.keys()
    assert "lowbit.errors" in modules["lowbit.kernels.selection"]
    for part in {*ONLY, *NEVER, "lowbit.cli"}:
        assert any(within(module, {part}) for module in modules), f"no file under {part}"


@pytest.mark.parametrize("part", ONLY)
def test_a_part_imports_only_what_it_may(part):
    for module, names in graph().items():
        if within(module, {part}):
            foreign = {name for name in names if not within(name, ONLY[part])}
            assert not foreign, f"{module} imports {foreign}"


@pytest.mark.parametrize("part", NEVER)
def test_a_part_never_imports_what_lies_above_it(part):
    for module, names in graph().items():
        if within(module, {part}):
            above = {name for name in names if within(name, NEVER[part])}
            assert not above, f"{module} imports {above}"


def test_nothing_imports_the_command_line():
    for module, names in graph().items():
        if not within(module, COMMAND_LINE):
            assert not {n for n in names if within(n, COMMAND_LINE)}, f"{module} imports the cli"


@pytest.mark.parametrize(
    ("source", "is_package", "found"),
    [
        ("import lowbit.hub as h, os", False, {"lowbit.hub"}),
        ("from lowbit import hub, errors", False, {"lowbit.hub", "lowbit.errors"}),
        ("from lowbit.nn import QuantLinear", False, {"lowbit.nn"}),
        ("from . import gemm", False, {"lowbit.kernels"}),
        ("from .. import hub", False, {"lowbit.hub"}),
        ("from ..nn import linear", False, {"lowbit.nn"}),
        ("from ..nn import linear", True, {"lowbit.nn"}),
        ("from .gemm import reference", True, {"lowbit.kernels.gemm"}),
        ("def f():\n    if x:\n        from lowbit import hub", False, {"lowbit.hub"}),
        ("import lowbits\nfrom torch import nn", False, set()),
    ],
)
def test_every_form_of_import_is_seen(source, is_package, found):
    module = "lowbit.kernels" if is_package else "lowbit.kernels.ops"
    assert imports(source, module, is_package) == found
