"""Checks shapes and dtypes where annotations name them, at every call.

As jaxtyping's own import hook, but for functions and dataclasses with a shape alone, and not for
functions inside functions, which that hook decorates anew at every call: most of the time of tests
that quantize small models.
"""

import ast
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader

import jaxtyping
from beartype import beartype

SHAPED = ("[Tensor, ", "GroupFloats")
NAME = "_shapes_are_checked"
CHECK = jaxtyping.jaxtyped(typechecker=beartype)


def named(node: ast.stmt) -> bool:
    """Whether an annotation of the function, or of a field of the class, is a shape."""
    if isinstance(node, ast.ClassDef):
        found = [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)]
    else:
        given = node.args
        found = [each.annotation for each in given.posonlyargs + given.args + given.kwonlyargs]
        found.append(node.returns)
    return any(part in ast.unparse(each) for each in found if each for part in SHAPED)


def decorate(body: list[ast.stmt]) -> int:
    """The number of functions and classes that are checked."""
    count = 0
    for node in body:
        if isinstance(node, ast.ClassDef):
            count += decorate(node.body)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and named(node):
            check = ast.copy_location(ast.Name(NAME, ast.Load()), node)
            # `@dataclass` comes before it, and `@property` after.
            at = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
            node.decorator_list.insert(at, check)
            count += 1
    return count


class Loader(SourceFileLoader):
    def get_code(self, fullname: str):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        decorate(tree.body)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module) -> None:
        setattr(module, NAME, CHECK)
        super().exec_module(module)


class Finder(MetaPathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if not any(f"{fullname}.".startswith(f"{package}.") for package in self.packages):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install(*packages: str) -> None:
    """Before these packages are imported."""
    sys.meta_path.insert(0, Finder(packages))
