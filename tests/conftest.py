"""Set up before lowbit is imported: no network, quiet transformers, shapes checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch
from hypothesis import settings

from tests import shape_checks

shape_checks.install("lowbit.formats", "lowbit.schemes")

# Half of hypothesis's own number of examples keeps the quick suite quick; more are a variable away.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(trylast=True)  # after tests of other marks are gone
def pytest_collection_modifyitems(config, items):
    """Of the tests of a kernel that this processor cannot run, one in a file stays, as skipped."""
    kept, dropped, seen = [], [], set()
    for item in items:
        missing = item.get_closest_marker("missing_target")
        if missing is None:
            kept.append(item)
            continue
        (why,) = missing.args
        item.add_marker(pytest.mark.skip(reason=why))
        known = (item.path, why) in seen
        (dropped if known else kept).append(item)
        seen.add((item.path, why))
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture
def threads():
    """Sets how many threads torch uses, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """Little work is not split anyway, and a busy machine makes threads wait for each other."""
    threads(1)
