"""Explain how a quantized model computes on this machine: kernels, programs, and slow paths."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from lowbit.fallbacks import noted
from lowbit.nn import QuantModule
from lowbit.runtime.summary import ProgramSummary, programs


@dataclass(frozen=True)
class Explanation:
    """How a model computes. `print` shows all fields.

    Attributes:
        kernels: Names of modules by the kernel that serves them, with the reason for its choice.
        slow_paths: The number of calls so far that took a slow path, by (module, reason).
        programs: The programs of compiled models, by module name.
    """

    kernels: dict[str, tuple[str, ...]]
    slow_paths: dict[tuple[str, str], int]
    programs: dict[str, list[ProgramSummary]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{len(names):5} modules  {kernel} ({names[0]}{', …' if len(names) > 1 else ''})"
            for kernel, names in self.kernels.items()
        ]
        lines += [
            f"{count:5} times    {name or 'the model'}: {reason}"
            for (name, reason), count in self.slow_paths.items()
        ]
        for name, made in self.programs.items():
            for program in made:
                lines += _lines(name or "the model", program)
        return "\n".join(lines) or "nothing is quantized, and every fast path applies"

    def to_dict(self) -> dict[str, Any]:
        return {
            "kernels": {kernel: list(names) for kernel, names in self.kernels.items()},
            "slow_paths": [
                {"module": name, "reason": reason, "times": count}
                for (name, reason), count in self.slow_paths.items()
            ],
            "programs": [
                {"module": name, **asdict(program)}
                for name, made in self.programs.items()
                for program in made
            ],
        }


def _lines(name: str, program: ProgramSummary) -> list[str]:
    begin = f"program      {name}({', '.join(program.arguments)}): "
    if program.refused is not None:
        return [begin + program.refused]
    by_torch = sum(count for count, _ in program.by_torch.values())
    lines = [
        f"{begin}{program.operations - by_torch} native operations, {by_torch} by torch,"
        f" {program.bytes_per_token / 1000:.1f} kB a token between them"
    ]
    lines += [
        f"{count:5} times    by torch between native parts: {operator} ({why})"
        for operator, (count, why) in program.by_torch.items()
    ]
    return lines + [
        f"             by torch before or after: {step} ({why})"
        for step, why in program.around.items()
    ]


def explain(model: nn.Module) -> Explanation:
    """Explain how a model computes on this machine.

    Args:
        model: Any model with quantized modules.

    Returns:
        The kernels with their modules, the programs of compiled models, and the slow paths of the
        calls so far, with reasons. `print` shows all.
    """
    kernels: dict[str, list[str]] = {}
    slow_paths: dict[tuple[str, str], int] = {}
    compiled: dict[str, list[ProgramSummary]] = {}
    for name, module in model.named_modules():
        if made := programs(module):
            compiled[name] = made
        if isinstance(module, QuantModule):
            kernels.setdefault(module.kernel(), []).append(name)
        slow_paths.update({(name, reason): n for reason, n in noted(module).items()})
    served = {kernel: tuple(names) for kernel, names in kernels.items()}
    return Explanation(served, slow_paths, compiled)
