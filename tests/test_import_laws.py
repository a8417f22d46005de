"""Data flows one way: who may import whom, read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# The rooms of the house, from the ground up. A room may import those on the floors below it, and
# itself: never one above, and never one beside it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"fallbacks", "import_hook", "launch", "progress", "versions", "visible"}),
    frozenset({"errors"}),
    frozenset({"extras", "formats"}),
    frozenset({"checkpoint"}),
    frozenset({"kernels", "schemes"}),
    frozenset({"nn"}),
    frozenset({"conversion", "data", "runtime"}),
    frozenset({"calibration", "decoding", "inspect"}),
    frozenset({"pipelines", "qat", "solvers"}),
    frozenset({"quantization", "interop", "peft"}),
    frozenset({"evaluation", "public"}),
    frozenset({""}),  # lowbit/__init__.py
    frozenset({"jobs", "report", "search", "serving", "training"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
ROOMS = frozenset().union(*FLOORS)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Modules that stand alone at the top of the package: all others live in a room.
LOOSE = FLOORS[0] | {"errors", "extras", "public", "__main__"}
# room -> the only parts of lowbit that it may import, fewer than the floors allow
ONLY = {
    "lowbit.schemes": {"lowbit.schemes", "lowbit.formats", "lowbit.errors"},
    "lowbit.nn": {
        "lowbit.nn",
        "lowbit.formats",
        "lowbit.kernels",
        "lowbit.errors",
        "lowbit.fallbacks",
    },
    "lowbit.formats": {"lowbit.formats", "lowbit.errors"},
    "lowbit.report": {
        "lowbit.report",
        "lowbit.evaluation.study",
        "lowbit.errors",
        "lowbit.visible",
        "lowbit.checkpoint.atomic_write",
    },
}


def within(module, parts):
    return any(module == part or module.startswith(part + ".") for part in parts)


def module_name(path):
    names = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def named(source, module, is_package):
    """(origin, name) of every import anywhere in `source`; the name is None in `import origin`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {(origin, alias.name) for alias in node.names}
    return {(origin, name) for origin, name in found if within(origin, {"lowbit"})}


def imports(source, module, is_package):
    """The lowbit modules that `source` names in its imports, anywhere in it."""
    # `from lowbit import x` may name a module; from deeper down, the origin decides.
    return {
        origin if name is None or "." in origin else f"{origin}.{name}"
        for origin, name in named(source, module, is_package)
    }


def each_file():
    for path in sorted(SOURCE.glob("lowbit/**/*.py")):
        yield path.read_text(), module_name(path), path.name == "__init__.py"


@cache
def graph():
    return {module: imports(*file) for file in each_file() for module in [file[1]]}


def circle(files):
    """Files that import each other, the first again at the end; none without a circle."""
    done = set()

    def search(way):
        for other in sorted(files.get(way[-1], ())):
            if other in way:
                return [*way[way.index(other) :], other]
            if other not in done:
                found = search([*way, other])
                if found:
                    return found
        done.add(way[-1])
        return []

    return next(filter(None, (search([file]) for file in sorted(files))), [])


def file_graph(files):
    """Which file imports which: `from package import x` counts as of x where that is a file."""
    files = list(files)
    modules = {module for _, module, _ in files}
    return {
        module: {
            inner if (inner := f"{origin}.{name}") in modules else origin
            for origin, name in named(source, module, is_package)
        }
        for source, module, is_package in files
    }


def test_no_files_import_each_other():
    assert not circle(file_graph(each_file()))


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"a": "import lowbit.b", "b": "import lowbit.c", "c": ""}, []),
        ({"a": "import lowbit.b", "b": "import lowbit.c", "c": "from lowbit import b"}, ["b", "c"]),
        ({"p": "from lowbit.p.x import y", "p.x": "from lowbit.p import z", "p.z": ""}, []),
        ({"p": "from lowbit.p.x import y", "p.x": "from lowbit.p import y"}, ["p", "p.x"]),
        ({"a": "if TYPE_CHECKING:\n    from .b import B", "b": "from .a import A"}, ["a", "b"]),
        ({"a": "from lowbit.a import itself"}, ["a"]),
    ],
)
def test_every_circle_is_seen(sources, found):
    files = ((text, f"lowbit.{name}", name == "p") for name, text in sources.items())
    assert circle(file_graph(files))[:-1] == [f"lowbit.{name}" for name in found]


def test_the_graph_is_that_of_the_whole_package():
    modules = graph()
    assert {"lowbit.errors", "lowbit.kernels.selection"} <= modules.keys()
    assert "lowbit.errors" in modules["lowbit.kernels.selection"]
    for room in ROOMS:
        part = f"lowbit.{room}".rstrip(".")
        assert any(within(module, {part}) for module in modules), f"no file under {part}"


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def test_every_module_is_in_a_room_that_the_house_has():
    for path in SOURCE.glob("lowbit/**/*.py"):
        room = room_of(module_name(path))
        assert room in ROOMS, f"{path} is in no room of FLOORS"
        loose = path.parent == SOURCE / "lowbit" and path.name != "__init__.py"
        assert not loose or room in LOOSE, f"{path} stands loose at the top: put it into a room"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_from_floors_below(room):
    for module, names in graph().items():
        if room_of(module) != room:
            continue
        for name in names:
            other = room_of(name)
            assert other == room or FLOOR[other] < FLOOR[room], (
                f"{module} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})"
            )


@pytest.mark.parametrize("part", ONLY)
def test_a_part_imports_only_what_it_may(part):
    for module, names in graph().items():
        if within(module, {part}):
            foreign = {name for name in names if not within(name, ONLY[part])}
            assert not foreign, f"{module} imports {foreign}"


@pytest.mark.parametrize(
    ("source", "is_package", "found"),
    [
        ("import lowbit.conversion as h, os", False, {"lowbit.conversion"}),
        ("from lowbit import conversion, errors", False, {"lowbit.conversion", "lowbit.errors"}),
        ("from lowbit.nn import QuantLinear", False, {"lowbit.nn"}),
        ("from . import gemm", False, {"lowbit.kernels"}),
        ("from .. import conversion", False, {"lowbit.conversion"}),
        ("from ..nn import linear", False, {"lowbit.nn"}),
        ("from ..nn import linear", True, {"lowbit.nn"}),
        ("from .gemm import reference", True, {"lowbit.kernels.gemm"}),
        (
            "def f():\n    if x:\n        from lowbit import conversion",
            False,
            {"lowbit.conversion"},
        ),
        ("import lowbits\nfrom torch import nn", False, set()),
    ],
)
def test_every_form_of_import_is_seen(source, is_package, found):
    module = "lowbit.kernels" if is_package else "lowbit.kernels.ops"
    assert imports(source, module, is_package) == found
