"""python -m tests.sweep.shares: how much of each mixture int8-all quantizes, and how much a token
reads, at the size that its configuration has by default.

Models are built without data. Tiny ones are mostly norms and say little.
"""

import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers
from transformers.initialization import no_init_weights

from lowbit.conversion.experts import describes_itself
from lowbit.conversion.plan import Plan, make_plan
from lowbit.conversion.recipe import PRESETS
from tests.sweep.classes import Registered, registered


class Share(NamedTuple):
    """A mixture: its parameters, those that are quantized, and the largest weight that is not."""

    model_class: str
    parameters: int
    quantized: int
    kept: str

    @property
    def share(self) -> float:
        return self.quantized / self.parameters


def mixtures() -> Iterator[Registered]:
    """Classes of transformers in whose module experts describe themselves."""
    for each in registered():
        model_class = getattr(transformers, each.model_class, None)
        known = getattr(model_class, "_can_set_experts_implementation", None)
        if known is not None and known():
            yield each


def plan_of(what: Registered) -> Plan | None:
    """That of int8-all for the default configuration; None for a model without experts."""
    model_class: Any = getattr(transformers, what.model_class)
    registered_config = transformers.CONFIG_MAPPING.get(what.model_type)
    config_class = model_class.config_class or registered_config
    if registered_config is not None and issubclass(registered_config, config_class):
        config_class = registered_config
    with torch.device("meta"), no_init_weights():
        model = model_class(config_class())
    if not any(map(describes_itself, model.modules())):
        return None
    return make_plan(model, PRESETS["int8-all"])


def shares() -> Iterator[Share | str]:
    """Each mixture's, or why it could not be built."""
    for what in mixtures():
        try:
            plan = plan_of(what)
        except Exception as error:
            yield f"{what.model_class}: {' '.join(str(error).split())[:120]}"
            continue
        if plan is not None:
            kept = max(plan.kept, key=lambda d: d.parameters, default=None)
            told = "" if kept is None else f"{kept.name}: {kept.reason}"
            yield Share(what.model_class, plan.parameters, plan.quantized_parameters, told)


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    few = 0
    for found in shares():
        if isinstance(found, str):
            print(f"not built: {found}", flush=True)
            continue
        few += found.share < 0.95
        print(
            f"{found.share:7.2%} of {found.parameters / 1e9:8.2f} billion  {found.model_class}"
            + (f"  (most of the rest: {found.kept})" if found.share < 0.99 else ""),
            flush=True,
        )
    sys.exit(f"{few} below 95 %" if few else 0)


if __name__ == "__main__":
    main()
