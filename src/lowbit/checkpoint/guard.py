"""Empty tensors that keep programs without lowbit from loading a quantized checkpoint.

transformers alone only warns of a `quant_method` that it does not know, and puts random numbers
where the weights should be. So beside the packed tensors a checkpoint holds a few empty tensors
under the names of float weights: of modules, or of the experts of a mixture, which are parameters
themselves. No model has weights of that shape, so that transformers refuses to load them, and its
report shows the name of one more empty tensor, which says what to do. lowbit reads neither.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

ADVICE = "__run_import_lowbit_before_loading__"


def guards(base_model_prefix: str, modules: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The empty tensors for a checkpoint that stores `modules`.

    One in each part of the model (embeddings, encoder, decoder, …), for a checkpoint may be opened
    as the model of one part.
    """
    parts: dict[str, str] = {}
    # In alphabetical order, as config.json has them: saving again writes the same.
    for name, entry in sorted(modules.items()):
        own = name.removeprefix(f"{base_model_prefix}.")
        if "tied_to" not in entry:
            weight = name if entry.get("format") == "experts" else f"{name}.weight"
            parts.setdefault(own.partition(".")[0], weight)
    return {name: torch.empty(0) for name in (ADVICE, *parts.values())}


def guard_patterns(base_model_prefix: str, modules: Iterable[str]) -> set[str]:
    """Regular expressions for the names of such tensors, in a checkpoint that stores `modules`."""
    prefix = f"{base_model_prefix}."
    names = "|".join(sorted({re.escape(name.removeprefix(prefix)) for name in modules}))
    return {f"^{ADVICE}$", rf"^({re.escape(prefix)})?({names})(\.weight)?$"}
