"""Imports a module of ours after one of another package, so that whoever does not use that package
does not wait for it."""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import Lock, local
from types import ModuleType
from typing import Any


def import_after(pairs: Mapping[str, str]) -> None:
    """pairs: module of another package -> ours, in the order in which ours are imported.

    Those whose module is there already are imported now; the others later, by an `ImportHook`.
    """
    hook = ImportHook(pairs)
    sys.meta_path.insert(0, hook)
    hook.import_ours()


class ImportHook:
    """A finder of `sys.meta_path` that finds nothing itself, and sees when imports end.

    Our modules are imported at the end of the outermost import of the packages in its thread,
    theirs and ours: then none of their modules is half-imported.
    """

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.pairs = dict(pairs)
        self.packages = {name.partition(".")[0] for pair in pairs.items() for name in pair}
        self.importing = Lock()
        # depth: of imports inside each other; looking: whether the other finders are asked.
        self.thread = local()

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """What other finders find, with a loader that counts."""
        if name.partition(".")[0] not in self.packages or getattr(self.thread, "looking", False):
            return None
        self.thread.looking = True
        try:
            spec = find_spec(name)
        finally:
            self.thread.looking = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            counting: Any = CountingLoader(self, spec.loader)
            spec.loader = counting
        return spec

    def run(self, loader: Any, module: ModuleType) -> None:
        """Execute a module, and import ours if no other import of these packages waits for it."""
        depth = getattr(self.thread, "depth", 0)
        self.thread.depth = depth + 1
        try:
            loader.exec_module(module)
            if depth == 0:
                self.import_ours()
        finally:
            self.thread.depth = depth

    def import_ours(self) -> None:
        """Import what is due. The last one removes the hook."""
        # A thread that waited for another here could hold the lock of a module that it needs.
        while self.due() and self.importing.acquire(blocking=False):
            try:
                for theirs in self.due():
                    import_module(self.pairs[theirs])
                    del self.pairs[theirs]
            finally:
                self.importing.release()
        if not self.pairs and self in sys.meta_path:
            sys.meta_path.remove(self)

    def due(self) -> list[str]:
        return [name for name in tuple(self.pairs) if name in sys.modules]


class CountingLoader:
    """The loader of one module, until it executes it."""

    def __init__(self, hook: ImportHook, loader: Any) -> None:
        self.hook, self.loader = hook, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.hook.run(self.loader, module)
