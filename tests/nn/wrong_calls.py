"""Modules called wrongly, thousands of ways: by native code and by the reference, in processes that
may end.

    python -m tests.nn.wrong_calls [--seed 0] [--calls 300] [--module experts] [--list]

Modules call native code without the checks of the operators, which take longer than a small
product. The reference, which is PyTorch, says what a call is worth. Every argument of a right call,
and every tensor that the module holds, is changed as in tests/kernels/wrong_calls.py, alone and in
pairs. What becomes of a call:

    crash       the process ended, or hung
    accepted    native code returned where the reference refuses, of float32 too: it read what is
                not there
    unlike      other shapes, dtypes or numbers than those of the reference
    foreign     an error that is neither ours nor, where the reference refuses as well, torch's
    ours        one of our sentences
    torch       one of torch's, as of the reference
    right       the numbers of the reference
    unmade      two changes that do not go together

The first four are faults. What ends the process in torch's own functions is not tried: memory that
was given back (`resize_(0)`), and attention without heads or with a mask on the meta device.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import lowbit
from lowbit.formats import CHANNEL, ExpertsTensor, StaticScale, group
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import QuantEmbedding, QuantExperts, QuantLinear, SharedInput
from lowbit.schemes import Absmax, Binary, Clustered, Scheme, ZeroPoint
from tests.kernels.wrong_calls import IDS_CHANGES, TENSOR_CHANGES, Change, campaign, counts, faults

FAULTS = ("crash", "accepted", "unlike", "foreign")
# What torch's own modules raise when they are given what does not fit.
OF_TORCH = (RuntimeError, TypeError, ValueError, IndexError, MemoryError)
ROWS, COLUMNS, EXPERTS = 48, 64, 3
SCHEMES: tuple[Scheme, ...] = (
    Absmax(8, CHANNEL),
    ZeroPoint(4, group(32)),
    Binary(3, CHANNEL, nested=True),
    Clustered(Binary(4, CHANNEL), ratio=2.0),
)
CHANGES = tuple(c for c in TENSOR_CHANGES if c.kind not in ("place", "none", "type"))


@dataclass(frozen=True)
class RightCall:
    """`run` takes the arguments by name; it makes a module of its own at every call. untried: kinds
    of change, and changes."""

    module: str
    run: Callable[..., Any]
    arguments: dict[str, Any]
    untried: tuple[str, ...] = ()

    def changes(self) -> Iterator[tuple["RightCall", str, Change]]:
        """Of every tensor."""
        for name, value in self.arguments.items():
            for change in (*CHANGES, *(IDS_CHANGES if name == "ids" else ())):
                if isinstance(value, Tensor) and not {change.kind, change.what} & {*self.untried}:
                    yield self, name, change


@dataclass(frozen=True)
class Call:
    right: RightCall
    changes: tuple[tuple[str, Change], ...]

    def __str__(self) -> str:
        what = ", ".join(f"{name}: {change.what}" for name, change in self.changes)
        return f"{self.right.module}, {self.right.run.__name__}({what})"

    def arguments(self) -> dict[str, Any]:
        arguments = dict(self.right.arguments)
        for name, change in self.changes:
            arguments[name] = change.make(arguments[name])
        return arguments


def right_calls() -> Iterator[RightCall]:
    torch.manual_seed(0)
    for scheme in SCHEMES:
        for activations in ("float", "dynamic", "static"):
            yield from _linear(scheme, activations)
        yield _embedding(scheme)
    for scheme in SCHEMES[:3]:
        for activations in ("float", "dynamic"):
            yield from _experts(scheme, activations)
    yield _mixture()
    yield from _attention()


def _linear(scheme: Scheme, activations: str) -> Iterator[RightCall]:
    q = scheme.quantize(torch.randn(ROWS, COLUMNS))

    def layer(bias: Tensor, stored: dict[str, Tensor]) -> QuantLinear:
        parameter = nn.Parameter(bias.detach(), requires_grad=False)
        made = QuantLinear(q.layout, COLUMNS, ROWS, parameter, activations).hold(q)
        if activations == "static":
            made.set_static(StaticScale(0.02, 3))
        for name, tensor in stored.items():
            setattr(made, name, tensor)
        return made.eval()

    def alone(x: Tensor, bias: Tensor, **stored: Tensor) -> Tensor:
        y: Tensor = layer(bias, stored)(x)
        return y

    def shared(x: Tensor, bias: Tensor, **stored: Tensor) -> list[Tensor]:
        layers = tuple(layer(bias, stored) for _ in range(3))
        for each in layers:
            each.shared = SharedInput(layers)
        return [each(x) for each in layers]

    given = {"x": torch.randn(5, COLUMNS), "bias": torch.randn(ROWS)}
    yield RightCall("linear", alone, {**given, **q.tensors()})
    yield RightCall("linear", shared, given)


def _embedding(scheme: Scheme) -> RightCall:
    q = scheme.quantize(torch.randn(ROWS, COLUMNS))

    def run(ids: Tensor, **stored: Tensor) -> Tensor:
        made = QuantEmbedding(q.layout, ROWS, COLUMNS).hold(q)
        for name, tensor in stored.items():
            setattr(made, name, tensor)
        y: Tensor = made(ids)
        return y

    ids = torch.tensor([0, ROWS - 1, 7])
    return RightCall("embedding", run, {"ids": ids, **q.tensors()})


def _experts(scheme: Scheme, activations: str) -> Iterator[RightCall]:
    """Three experts of 64 rows, two chosen for each of 5 tokens; id 3 chooses none."""
    weights = [scheme.quantize(torch.randn(64, COLUMNS)) for _ in range(EXPERTS)]
    q = ExpertsTensor.of(weights, EXPERTS)

    def run(x: Tensor, ids: Tensor, bias: Tensor, gate: str = "identity", weights: Any = None,
            **stored: Tensor) -> Tensor:  # fmt: skip
        made = QuantExperts(q.layout, EXPERTS * 64, COLUMNS, activations).hold(q)
        for name, tensor in stored.items():
            setattr(made, name, tensor)
        y: Tensor = made(
            x, ids, bias, gate if made.takes_gate(gate, x, bias) else "identity", weights
        )
        return y

    ids = torch.tensor([[0, 1], [2, 2], [3, 0], [1, 3], [3, 3]])
    call = {"x": torch.randn(5, COLUMNS), "ids": ids, "bias": torch.randn(EXPERTS, 64)}
    summed = {**call, "x": torch.randn(10, COLUMNS), "weights": torch.rand(5, 2)}
    yield RightCall("experts", run, {**call, **q.tensors()})
    yield RightCall("experts", run, summed)


def _mixture() -> RightCall:
    config = MixtralConfig(hidden_size=32, intermediate_size=64, num_local_experts=EXPERTS)
    config._experts_implementation_internal = "grouped_mm"
    made = nn.Sequential(MixtralExperts(config).eval())
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    lowbit.quantize(made, "int8", progress=False)

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        y: Tensor = made[0](x, ids, weights)
        return y

    call = {
        "x": torch.randn(5, 32),
        "ids": torch.randint(EXPERTS, (5, 2)),
        "weights": torch.rand(5, 2),
    }
    return RightCall("mixture", run, call)


def _attention() -> Iterator[RightCall]:
    """Four heads, two of keys; as many queries as float32 and as tiles like, 12 keys."""

    def run(
        query: Tensor, key: Tensor, value: Tensor, mask: Any = None, name: str = "lowbit"
    ) -> Tensor:
        module = nn.Module().eval()
        module.num_key_value_groups, module.is_causal = 2, True
        y: Tensor = AttentionInterface()[name](module, query, key, value, mask, scaling=0.25)[0]
        return y

    for name in ("lowbit", "lowbit_float32"):
        for queries in (1, 5, 12):
            call = {"query": torch.randn(2, 4, queries, 16), "key": torch.randn(2, 2, 12, 16),
                    "value": torch.randn(2, 2, 12, 16)}  # fmt: skip
            seen = torch.rand(2, 1, queries, 12) < 0.8
            seen[..., 0] = True
            for mask in (None, seen, torch.zeros(1, 4, 1, 12)):
                given = {**call, "mask": mask, "name": name}
                yield RightCall("attention", run, given, ("device", "second empty", "second cut"))


def modules() -> list[str]:
    return sorted({right.module for right in right_calls()})


def all_calls(module: str, most: int, seed: int) -> list[Call]:
    """Every single change of every right call, then pairs up to `most`."""
    chance = random.Random(f"{module} {seed}")
    single = [each for right in right_calls() if right.module == module for each in right.changes()]
    chance.shuffle(single)
    calls = [Call(right, ((name, change),)) for right, name, change in single]
    while len(calls) < most:
        right, name, change = chance.choice(single)
        _, other, again = chance.choice([each for each in single if each[0] is right])
        if other != name:
            calls.append(Call(right, ((name, change), (other, again))))
    return calls[:most]


def outcome(call: Call) -> tuple[str, str]:
    """What becomes of the call, and in which words."""
    try:
        arguments = call.arguments()
    except (AttributeError, TypeError, IndexError, RuntimeError):
        return "unmade", ""
    found = _tried(call.right.run, arguments, "")
    wanted = _tried(call.right.run, arguments, "reference")
    if isinstance(found, Exception):
        said = f"{type(found).__name__}: {found}"[:300]
        if isinstance(found, lowbit.LowbitError):
            return "ours", said
        of_torch = isinstance(found, OF_TORCH) and isinstance(wanted, Exception)
        return ("torch" if of_torch else "foreign"), said
    if any(isinstance(t, Tensor) and _unbounded(t) for t in arguments.values()):
        return "right", "numbers that are not finite"
    dtypes = not isinstance(wanted, Exception)
    if not dtypes:  # ours takes what torch does not mix
        wide = {name: _wide(value) for name, value in arguments.items()}
        wanted = _tried(call.right.run, wide, "reference")
    if isinstance(wanted, Exception):
        return "accepted", f"{type(wanted).__name__}: {wanted}"[:300]
    return _compared(tree_leaves(found), tree_leaves(wanted), dtypes)


def _wide(value: Any) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if floats else value


def _tried(run: Callable[..., Any], arguments: dict[str, Any], kernel: str) -> Any:
    """The result, or the exception."""
    os.environ[VARIABLE] = kernel
    try:
        with torch.no_grad():
            return run(**arguments)
    except Exception as error:
        return error


def _unbounded(t: Tensor) -> bool:
    """Whether sums of its numbers may be infinite, or are."""
    floats = t.is_floating_point() and not t.is_meta
    return floats and not bool((t.double().abs() < 1e30).all())


def _compared(found: list[Tensor], wanted: list[Tensor], dtypes: bool) -> tuple[str, str]:
    forms = [[(t.shape, t.device, dtypes and t.dtype) for t in ts] for ts in (found, wanted)]
    if forms[0] != forms[1]:
        return "unlike", f"{forms[0]}, not {forms[1]}"
    for x, y in zip(found, wanted, strict=True):
        rounding = torch.finfo(x.dtype).eps if x.is_floating_point() else 0
        x, y = x.double(), y.double()
        if x.is_meta or not y.numel() or not bool(y.isfinite().all()):
            continue
        off = float((x - y).norm() / y.norm().clamp(min=1e-30))
        if not off <= max(0.02, rounding):
            return "unlike", f"off by {off:.3g}"
    return "right", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=300, help="of each kind of module")
    parser.add_argument("--module", action="append", choices=modules())
    parser.add_argument("--list", action="store_true", help="print every fault")
    asked = parser.parse_args()
    total: Counter[str] = Counter()
    for module in asked.module or modules():
        found = campaign(all_calls(module, asked.calls, asked.seed), outcome)
        total.update(counts(found))
        print(module, len(found), json.dumps(counts(found)), flush=True)
        if asked.list:
            print("\n".join(f"    {line}" for line in faults(found, FAULTS)))
    print("all", sum(total.values()), json.dumps(dict(sorted(total.items()))))
    sys.exit(any(total[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
