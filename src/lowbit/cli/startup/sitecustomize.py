"""Python imports this file at its start when `lowbit run` puts its folder on PYTHONPATH.

As soon as the program has imported transformers, lowbit is imported too, and after peft what lets
it adapt quantized models; a program that never does pays nothing. Processes that it starts inherit
PYTHONPATH, and so do the same.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class ImportAfter:
    """Imports a module of lowbit after `package`, which is complete by then."""

    def __init__(self, package: str, own: str) -> None:
        self.package, self.own = package, own
        self.looking = False

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """The spec of the package as others find it, with a loader that goes on with ours."""
        if name != self.package or self.looking:
            return None
        self.looking = True
        try:
            spec = find_spec(name)
        finally:
            self.looking = False
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def run_both(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            sys.meta_path.remove(self)
            import_ours(self.own)

        loader.exec_module = run_both
        return spec


def import_ours(name: str) -> None:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "lowbit":
            raise
        # Not as an exception that a program may catch, to go on with wrong weights.
        raise SystemExit(f"lowbit run: {sys.executable} has no lowbit: install it there") from None


def hand_over(folder: str) -> None:
    """Leave the name of this module to the file that would have been imported without it."""
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    spec = PathFinder.find_spec(__name__)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


sys.meta_path[:0] = [ImportAfter("transformers", "lowbit"), ImportAfter("peft", "lowbit.peft")]
hand_over(str(Path(__file__).parent))
