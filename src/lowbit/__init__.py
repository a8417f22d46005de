"""lowbit: Hugging Face transformers in 8 to 1 bits that stay Hugging Face models.

Importing it lets transformers load what it saved.
"""

from lowbit.launch import launched, leave_at_once

__version__ = "0.1.0"

if launched():
    # The imports below take seconds. The command line makes them when it knows what for.
    leave_at_once()
else:
    from lowbit.public import *  # noqa: F403
    from lowbit.public import __all__ as __all__
