"""Set up before lowbit is imported: no network, quiet transformers, shapes checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from hypothesis import settings
from jaxtyping import install_import_hook

# The annotations of these modules are checked at every call, in tests only.
install_import_hook(["lowbit.formats", "lowbit.schemes"], "beartype.beartype")

# Half of hypothesis's own number of examples keeps the quick suite quick; more are a variable away.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
