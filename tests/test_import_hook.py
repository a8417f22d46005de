"""Ours is imported after theirs, and sees no half-imported module; with packages made for it."""

import sys
import threading
import zipfile
from importlib import import_module
from importlib.util import find_spec

import pytest

from lowbit.import_hook import ImportHook, import_after

FILES = {
    "theirs/__init__.py": "",
    # An import of `outer` begins with a module that ours needs, and that it imports in a circle.
    "theirs/outer.py": "from theirs.models import Model\nclass Outer: ...",
    "theirs/models.py": "from theirs import quantizers\nclass Model: ...",
    "theirs/quantizers.py": "import time\ntime.sleep(0.01)\nknown = []",
    "ours/__init__.py": "",
    "ours/registration.py": "from ours.quantizer import Quantizer\nfrom theirs.outer import Outer\n"
    "from theirs.quantizers import known\nknown.append(Quantizer)",
    "ours/quantizer.py": "from theirs.models import Model\nclass Quantizer: ...",
}
PAIRS = {"theirs.quantizers": "ours.registration"}
ENTRIES = ("theirs.outer", "theirs.models", "theirs.quantizers", "ours.quantizer")


@pytest.fixture(params=["folder", "zip"])
def packages(request, tmp_path, monkeypatch):
    """Both packages can be imported, from files or from one archive."""
    place = tmp_path / request.param
    if request.param == "folder":
        for name, text in FILES.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    else:
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in FILES.items():
                archive.writestr(name, text)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("theirs", "ours")]:
        del sys.modules[name]


def hooks():
    return [finder for finder in sys.meta_path if isinstance(finder, ImportHook)]


def known():
    return [kind.__name__ for kind in sys.modules["theirs.quantizers"].known]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("first", [True, False])
def test_ours_follows_theirs_whatever_is_imported_first(entry, first, packages):
    before = hooks()
    if not first:
        import_module(entry)
    import_after(PAIRS)
    import_module("theirs")
    assert first is ("theirs.quantizers" not in sys.modules)
    module = import_module(entry)
    assert known() == ["Quantizer"] and hooks() == before
    assert module.__loader__ is module.__spec__.loader
    assert not type(module.__loader__).__module__.startswith("lowbit")


def test_looking_for_a_module_does_not_import_it(packages):
    import_after(PAIRS)
    assert find_spec("theirs.quantizers").loader.is_package("theirs.quantizers") is False
    assert find_spec("theirs.none") is None
    assert "theirs.quantizers" not in sys.modules


class Asking:
    """A hook that asks all finders, this one's too, as that of `lowbit run` does."""

    def __init__(self):
        self.looking = False

    def find_spec(self, name, *_):
        if self.looking:
            return None
        self.looking = True
        try:
            return find_spec(name)
        finally:
            self.looking = False


def test_hooks_that_ask_each_other_end(packages):
    import_after(PAIRS)
    sys.meta_path.insert(0, Asking())
    import_after({"theirs.models": "ours.quantizer"})
    import_module("theirs.outer")
    assert known() == ["Quantizer"]


def test_an_error_of_ours_is_raised_and_ours_is_tried_again(packages):
    import_after({"theirs.quantizers": "ours.missing"})
    for entry in ("theirs.quantizers", "theirs.models"):
        with pytest.raises(ModuleNotFoundError, match="ours.missing"):
            import_module(entry)


def test_threads_that_import_at_once_import_ours_once(packages):
    import_after(PAIRS)
    failures = []

    def load(entry):
        try:
            import_module(entry)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=load, args=(entry,)) for entry in ENTRIES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and known() == ["Quantizer"]
