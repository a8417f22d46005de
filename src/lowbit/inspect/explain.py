"""How a quantized model computes on this machine: kernels, and fast paths that were not taken."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lowbit.fallbacks import noted
from lowbit.nn import QuantModule


@dataclass(frozen=True)
class Explanation:
    """kernels: the kernel and why it was chosen -> names of the modules that it serves.
    slow_paths: (module, reason) -> how often it was met so far. `print` shows both."""

    kernels: dict[str, tuple[str, ...]]
    slow_paths: dict[tuple[str, str], int]

    def __str__(self) -> str:
        lines = [
            f"{len(names):5} modules  {kernel} ({names[0]}{', …' if len(names) > 1 else ''})"
            for kernel, names in self.kernels.items()
        ]
        lines += [
            f"{count:5} times    {name or 'the model'}: {reason}"
            for (name, reason), count in self.slow_paths.items()
        ]
        return "\n".join(lines) or "nothing is quantized, and no fast path was refused"

    def to_dict(self) -> dict[str, Any]:
        return {
            "kernels": {kernel: list(names) for kernel, names in self.kernels.items()},
            "slow_paths": [
                {"module": name, "reason": reason, "times": count}
                for (name, reason), count in self.slow_paths.items()
            ],
        }


def explain(model: nn.Module) -> Explanation:
    """Say how a model computes on this machine.

    Args:
        model: Any model with quantized modules.

    Returns:
        The kernels with their modules, and the fast paths not taken in the calls so far, with
        reasons. `print` shows both.
    """
    kernels: dict[str, list[str]] = {}
    slow_paths: dict[tuple[str, str], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            kernels.setdefault(module.kernel(), []).append(name)
        slow_paths.update({(name, reason): n for reason, n in noted(module).items()})
    return Explanation({kernel: tuple(names) for kernel, names in kernels.items()}, slow_paths)
