"""Set up before lowbit is imported: no network, quiet transformers, shapes checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from hypothesis import settings

from tests import shape_checks

shape_checks.install("lowbit.formats", "lowbit.schemes")

# Half of hypothesis's own number of examples keeps the quick suite quick; more are a variable away.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
