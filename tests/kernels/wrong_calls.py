"""Operators called wrongly, thousands of ways, in processes that may end.

    python -m tests.kernels.wrong_calls [--seed 0] [--calls 300] [--operator linear]

Every argument of a right call (right_calls.py) is changed in every way that its type in the schema
allows, and then in pairs, drawn by the seed. What becomes of a call:

    crash       the process ended, or hung
    foreign     an error that is not ours
    accepted    a wrong call returned
    unlike      a call that may be right returned what its fake version does not promise, or other
                numbers than the same tensors say elsewhere in memory
    ours        one of our sentences
    schema      torch's own sentence: the value is not of the argument's type
    right       a call that turned out to be right
    memory      torch's own sentence: so much memory is not there
    unmade      two changes that do not go together

The first four are faults. A fake version must refuse what the real one refuses, and does so by
shapes and dtypes alone.
"""

import argparse
import json
import math
import os
import pickle
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

import lowbit.kernels.ops  # noqa: F401  registers the operators
from lowbit.errors import LowbitError
from tests.kernels.right_calls import RightCall, right_calls

FAULTS = ("crash", "foreign", "accepted", "unlike")
SECONDS = 60  # a call that computes for longer, or waits for ten times as long, hangs
MEMORY = 8 << 30


@dataclass(frozen=True)
class Change:
    """An argument in another way. kind: what is another about it; "memory" is where its numbers lie
    and nothing else."""

    kind: str
    what: str
    make: Callable[[Any], Any]


def _at(place: int, size: int) -> Callable[[Tensor], Tensor]:
    """The tensor with one size changed to size + its own: cut, or repeated."""

    def make(t: Tensor) -> Tensor:
        wanted = max(0, t.shape[place] + size)
        more = torch.cat([t] * (2 + max(0, size)), place)
        return more.narrow(place, 0, wanted).contiguous()

    return make


def _freed(t: Tensor) -> Tensor:
    made = t.clone()
    made.untyped_storage().resize_(0)
    return made


def _short(t: Tensor) -> Tensor:
    """Memory for half of its numbers."""
    made = t.clone()
    made.untyped_storage().resize_(made.untyped_storage().nbytes() // 2)
    return made


def _offset(t: Tensor) -> Tensor:
    made = torch.empty(t.numel() + 3, dtype=t.dtype)[3:].view(t.shape)
    return made.copy_(t)


def _spread(t: Tensor) -> Tensor:
    made = torch.empty(*t.shape, 3, dtype=t.dtype)[..., 1]
    return made.copy_(t)


def _turned(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def _negated(t: Tensor) -> Tensor:
    """The same numbers behind torch's lazy minus sign."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag if t.is_floating_point() else t


def _filled(number: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.full_like(t, number) if t.is_floating_point() else t


DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8,
    torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn,
    torch.uint16, torch.uint64,
)  # fmt: skip


def _kind_of(dtype: torch.dtype) -> str:
    if dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return "float dtype"
    whole = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
    return "integer dtype" if dtype in whole else "dtype"


TENSOR_CHANGES = (
    *(Change(_kind_of(d), str(d), lambda t, d=d: t.to(d)) for d in DTYPES),
    Change("memory", "turned", _turned),
    Change("memory", "offset", _offset),
    Change("memory", "spread", _spread),
    Change("memory", "negated", _negated),
    Change("memory", "tracked", lambda t: _tracked(t)),
    Change("numbers", "nan", _filled(float("nan"))),
    Change("numbers", "inf", _filled(float("inf"))),
    Change("numbers", "large", _filled(3e38)),
    Change("numbers", "tiny", _filled(1e-44)),
    Change("rows", "one row less", _at(0, -1)),
    Change("rows", "no rows", _at(0, -(1 << 40))),
    Change("rows", "rows more", _at(0, 16)),
    Change("columns", "columns less", _at(-1, -33)),
    Change("columns", "no columns", _at(-1, -(1 << 40))),
    Change("columns", "columns more", _at(-1, 33)),
    Change("shape", "second cut", lambda t: _at(1, -33)(t) if t.dim() > 1 else t[None, :-1]),
    Change("shape", "second empty", lambda t: t[:, :0] if t.dim() > 1 else t[None, :0]),
    Change("rank", "in a list", lambda t: t[None]),
    Change("rank", "one row", lambda t: t[0] if t.dim() > 1 else t[None, None]),
    Change("flat", "flat", lambda t: t.flatten() if t.dim() > 1 else t[:0].view(0, 0)),
    Change("scalar", "scalar", lambda t: t.flatten()[0]),
    Change("one", "one of each", lambda t: t[(slice(1),) * t.dim()]),
    Change("shape", "six dimensions", lambda t: t.reshape(*t.shape, *[1] * (6 - t.dim()))),
    Change("rows", "2^40 rows", lambda t: t[:1].expand(1 << 40, *t.shape[1:])),
    Change("shape", "2^40 columns", lambda t: t[..., :1].expand(*t.shape[:-1], 1 << 40)),
    Change("device", "meta", lambda t: t.to("meta")),
    Change("place", "sparse", lambda t: t.to_sparse()),
    Change("place", "freed", _freed),
    Change("place", "half freed", _short),
    Change("none", "None", lambda t: None),
    Change("type", "a list", lambda t: t.tolist()),
    Change("type", "a number", lambda t: 3),
)


def _tracked(t: Tensor) -> Tensor:
    return t.clone().requires_grad_() if t.is_floating_point() else t


IDS_CHANGES = tuple(
    Change("ids", f"id {n}", lambda t, n=n: torch.tensor([0, n], dtype=torch.int64))
    for n in (-1, 48, 49, 1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1)
)
INT_CHANGES = tuple(
    Change("at least 1" if n > 0 else "value", str(n), lambda _, n=n: n)
    for n in (-(1 << 63), -(1 << 31), -128, -1, 0, 1, 2, 3, 4, 5, 7, 16, 80, 128, 255, 1000,
              1 << 16, 1 << 31, 1 << 32, 1 << 60, (1 << 62), (1 << 63) - 1, 1 << 70)
)  # fmt: skip
FLOAT_CHANGES = tuple(
    Change("finite" if math.isfinite(n) else "value", str(n), lambda _, n=n: n)
    for n in (float("nan"), float("inf"), -float("inf"), -0.5, 1e39, 1e-60, 0.0, 0.5)
)
LAYOUTS = (
    "{}", "[]", "7", "None", "{'format': 'affine'}", "{'format': 7}", "(" * 5000, "-" * 9000 + "1",
    "{'format': 'affine', 'bits': 99, 'granularity': 'channel', 'zero_point': False,"
    " 'scale_dtype': 'float16'}",
    "{'format': 'affine', 'bits': 4, 'granularity': 'group:0', 'zero_point': True,"
    " 'scale_dtype': 'float16'}",
    "{'format': 'affine', 'bits': 4, 'granularity': 'group:32', 'zero_point': 1,"
    " 'scale_dtype': 'float16'}",
    "{'format': 'binary', 'bits': 2, 'granularity': 'tensor', 'offset': True, 'nested': False,"
    " 'scale_dtype': 'float16'}",
    "{'format': 'affine', 'bits': 8, 'granularity': 'channel', 'zero_point': True,"
    " 'scale_dtype': 'int8'}",
    "{'format': 'stacked', 'parts': []}", "{'format': 'stacked', 'parts': [{'rows': 3}]}",
    "{'format': 'stacked', 'parts': {}}", "{'format': 'stacked', 'parts': [7]}",
    "__import__('os')", "{'a': " * 60 + "1" + "}" * 60, "9" * 5000, "'\\ud800'", "\x00",
)  # fmt: skip
TEXTS = ("", "vax", "scalar\x00", "é", "x" * 100_000, *LAYOUTS)
TEXT_CHANGES = (
    *(Change("value", repr(text[:40]), lambda _, text=text: text) for text in TEXTS),
    Change("type", "a number", lambda _: 7),
    Change("none", "None", lambda _: None),
)
DTYPE_CHANGES = (
    *(Change("value", str(d), lambda _, d=d: d) for d in (*DTYPES, torch.complex32, torch.qint8)),
    Change("type", "text", lambda _: "float32"),
    Change("none", "None", lambda _: None),
)
LIST_CHANGES = (
    Change("count", "none of them", lambda ts: []),
    Change("count", "one less", lambda ts: ts[:-1]),
    Change("count", "one more", lambda ts: [*ts, ts[-1]]),
    Change("count", "a thousand", lambda ts: ts * 1000),
    Change("count", "backwards", lambda ts: [*reversed(ts)] if len(ts) > 1 else []),
    Change("count", "the first, again and again", lambda ts: [ts[0]] * max(2, len(ts))),
)


def _changes(argument: Any, value: Any) -> Iterator[Change]:
    """What an argument of this type in the schema can be made into."""
    kind = str(argument.type)
    if kind == "List[Tensor]":
        yield from LIST_CHANGES
        for place in range(len(value)):
            for each in TENSOR_CHANGES:
                yield Change(each.kind, f"[{place}] {each.what}", _of_one(place, each))
    elif "Tensor" in kind and value is not None:
        yield from TENSOR_CHANGES
        if argument.name == "ids":
            yield from IDS_CHANGES
    elif kind == "int" and isinstance(value, torch.dtype):
        yield from DTYPE_CHANGES
    elif kind == "int":
        yield from INT_CHANGES
        yield Change("type", "text", lambda _: "7")
    elif "float" in kind and value is not None:
        yield from FLOAT_CHANGES
    elif kind == "bool":
        yield Change("type", "a tensor of two", lambda _: torch.ones(2))
        yield Change("value", "the other", lambda v: not v)
    elif kind == "str":
        yield from TEXT_CHANGES


def _of_one(place: int, change: Change) -> Callable[[list[Tensor]], list[Any]]:
    return lambda ts: [change.make(t) if i == place else t for i, t in enumerate(ts)]


@dataclass(frozen=True)
class Call:
    """verdict: "wrong"; "free", which may be right or refused; "same", which is the right call with
    its numbers elsewhere in memory."""

    operator: str
    what: str
    verdict: str
    right: RightCall
    changes: tuple[tuple[str, Change], ...]

    def __str__(self) -> str:
        return f"{self.operator}({self.what}) [{self.verdict}]"

    def arguments(self) -> tuple[Any, ...]:
        arguments = dict(self.right.arguments)
        for name, change in self.changes:
            arguments[name] = change.make(arguments[name])
        return tuple(arguments.values())


def operators() -> list[str]:
    """Every one that is registered."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted({n.removeprefix("lowbit::") for n in names if n.startswith("lowbit::")})


def all_calls(operator: str, most: int, seed: int) -> list[Call]:
    """Every single change of every right call, then pairs up to `most`."""
    chance = random.Random(f"{operator} {seed}")
    schema = getattr(torch.ops.lowbit, operator).default._schema
    single = [
        (right, argument.name, change)
        for right in right_calls()
        if right.operator == operator
        for argument in schema.arguments
        for change in _changes(argument, right.arguments[argument.name])
    ]
    chance.shuffle(single)
    calls = [_call(operator, right, (name, change)) for right, name, change in single]
    while calls and len(calls) < most:
        right, name, change = chance.choice(single)
        _, other, again = chance.choice([each for each in single if each[0] is right])
        if other != name:
            calls.append(_call(operator, right, (name, change), (other, again)))
    return calls[:most]


# What two changes may make right together: as many rows of one argument as ids of another.
SIZES = ("rows", "columns", "shape", "ids")


def _call(operator: str, right: RightCall, *changes: tuple[str, Change]) -> Call:
    verdicts = {_verdict(right, name, change) for name, change in changes}
    if len(changes) > 1 and all(change.kind in SIZES for _, change in changes):
        verdicts = {"free"}  # two sizes that agree again
    first = next(v for v in ("wrong", "free", "same") if v in verdicts)
    what = ", ".join(f"{name}: {change.what}" for name, change in changes)
    return Call(operator, what, first, right, changes)


def _verdict(right: RightCall, name: str, change: Change) -> str:
    if change.kind == "memory":
        return "same"
    if change.kind in right.free.get(name, ()):
        return "free"
    value = right.arguments[name]
    if change.kind in ("value", "at least 1", "finite"):
        new = change.make(value)
        return "free" if new == value or new in right.values.get(name, ()) else "wrong"
    if _equal(value, change.make(value)):
        return "same"
    return "wrong"


def _equal(a: Any, b: Any) -> bool:
    leaves = tree_leaves(a), tree_leaves(b)
    return len(leaves[0]) == len(leaves[1]) and all(
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and (x.shape, x.dtype, x.device, x.layout) == (y.shape, y.dtype, y.device, y.layout)
        and x.untyped_storage().nbytes() == y.untyped_storage().nbytes()
        for x, y in zip(*leaves, strict=True)
    )


def outcome(call: Call) -> tuple[str, str]:
    """What becomes of the call, and in which words."""
    run = getattr(torch.ops.lowbit, call.operator)
    try:
        arguments = call.arguments()
    except (AttributeError, TypeError, IndexError, RuntimeError):
        return "unmade", ""  # two changes that do not go together
    real, said, result = _tried(run, arguments)
    if real in ("schema", "memory", "foreign"):
        return real, said
    fake, fake_said, promised = _faked(run, arguments)
    if fake == "foreign":
        return "foreign", f"fake: {fake_said}"
    if real == "ours":
        # Neither numbers nor their memory are there to look at.
        blind = said.startswith("RowError") or any(c.kind == "place" for _, c in call.changes)
        if fake != "ours" and not blind:
            return "accepted", f"fake; the real one says: {said}"
        return "ours", said
    if call.verdict == "wrong":
        return "accepted", said
    if fake == "ours" or _forms(result) != _forms(promised):
        return "unlike", f"{_forms(result)}; fake: {fake_said} {_forms(promised)}"
    if call.verdict == "same":
        wanted = run(*call.right.arguments.values())
        for x, y in zip(tree_leaves(wanted), tree_leaves(result), strict=True):
            if not torch.equal(x, y):
                return "unlike", "other numbers"
    return "right", said


def _tried(run: Any, arguments: tuple[Any, ...]) -> tuple[str, str, Any]:
    try:
        return "right", "", run(*arguments)
    except LowbitError as error:
        return "ours", f"{type(error).__name__}: {error}", None
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, DynamicOutputShapeException):
            return "right", "", None
        if "DefaultCPUAllocator" in said or "not enough memory" in said or "overflowed" in said:
            return "memory", said, None
        # What torch says before it calls anything of ours.
        schema = ("expected a value of type", "Expected a value of type", "ScalarType", "Overflow")
        ours = error.__traceback__ is not None and _reached_ours(error)
        if (
            not ours
            and isinstance(error, RuntimeError | TypeError)
            and (any(word in said for word in schema))
        ):
            return "schema", said, None
        return "foreign", said[:300], None


def _reached_ours(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if f"{os.sep}lowbit{os.sep}" in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


def _faked(run: Any, arguments: tuple[Any, ...]) -> tuple[str, str, Any]:
    with FakeTensorMode() as mode:
        try:
            fakes = tree_map_only(Tensor, mode.from_tensor, arguments)
        except Exception:  # nothing is fake of it
            return "right", "", None
        return _tried(run, fakes)


def _forms(result: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in tree_leaves(result) if isinstance(t, Tensor)]


def campaign(
    calls: list[Any], outcome: Callable[[Any], tuple[str, str]] = outcome
) -> list[tuple[Any, str, str]]:
    """Each call with its outcome. They run in forked processes: one that ends costs one call."""
    found: list[tuple[Any, str, str]] = []
    while len(found) < len(calls):
        heard, status = _in_a_child(calls[len(found) :], outcome)
        found += [(call, *each) for call, each in zip(calls[len(found) :], heard, strict=False)]
        if status and len(found) < len(calls):
            how = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
            found.append((calls[len(found)], "crash", how))
    return found


def _in_a_child(
    calls: list[Any], outcome: Callable[[Any], tuple[str, str]]
) -> tuple[list[tuple[str, str]], int]:
    """The outcomes of the first of the calls, as far as they came, and how the process ended."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for late in (signal.SIGALRM, signal.SIGPROF):
                signal.signal(late, signal.SIG_DFL)
            torch.set_num_threads(1)  # a fork has none of its parent's
            for call in calls:
                signal.alarm(10 * SECONDS)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                told = pickle.dumps(outcome(call))
                os.write(writer, len(told).to_bytes(4, "little") + told)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    told = []
    with os.fdopen(reader, "rb") as pipe:
        while len(head := pipe.read(4)) == 4:
            told.append(pickle.loads(pipe.read(int.from_bytes(head, "little"))))
    return told, os.waitpid(child, 0)[1]


def counts(found: list[tuple[Any, str, str]]) -> dict[str, int]:
    return dict(sorted(Counter(what for _, what, _ in found).items()))


def faults(found: list[tuple[Any, str, str]], kinds: Sequence[str] = FAULTS) -> list[str]:
    """One line each."""
    return [ascii(f"{call}: {what}, {said}") for call, what, said in found if what in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=300, help="of each operator")
    parser.add_argument("--operator", action="append", choices=operators())
    parser.add_argument("--list", action="store_true", help="print every fault")
    asked = parser.parse_args()
    total: Counter[str] = Counter()
    for operator in asked.operator or operators():
        found = campaign(all_calls(operator, asked.calls, asked.seed))
        total.update(counts(found))
        print(operator, len(found), json.dumps(counts(found)), flush=True)
        if asked.list:
            print("\n".join(f"    {line}" for line in faults(found)))
    print("all", sum(total.values()), json.dumps(dict(sorted(total.items()))))
    sys.exit(any(total[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
