"""Find out what a subclass of a known module class computes, by running its `forward`.

A subclass that inherits `forward` computes the same. For any other, a small twin runs: the same
object with a few rows of random weights. It is cheap and works for a model without data. Its
results must equal those of the known class, in training and in evaluation. Its source must not
branch on its input, because the twin sees only one branch.
"""

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 8
LARGE = 1e6  # the factor of some test inputs, large enough to detect clipping
_CONTAINERS = (dict, list, set)  # attributes that a forward may write to


@dataclass(frozen=True)
class Kind:
    """A class with a known `forward`: the attributes with its numbers of outputs and inputs (rows
    and columns of a table), and whether its weight is [in, out]."""

    base: type[nn.Module]
    rows: str
    columns: str
    transposed: bool = False

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """[out, in]."""
        return getattr(module, self.rows), getattr(module, self.columns)


def inherits(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether `module` runs the `forward` of `base`."""
    return type(module).forward is base.forward and "forward" not in vars(module)


def differs(module: nn.Module, kind: Kind) -> str | None:
    """Why a linear layer computes something else than its known class, or None."""
    if inherits(module, kind.base):
        return None
    if reason := _reads_its_input(module, kind.base):
        return reason
    twin = _Twin(module, kind, buffers_by_chance=True)
    x = _random(2, 3, kind.shape(module)[1])
    x[1] *= LARGE
    expected = twin.run(x, kind.base)
    for training in (False, True):
        y = twin.run(x, type(module), training)
        if expected is None or y is None or not _close(y, expected):
            return f"computes something else than {kind.base.__name__}"
    return None


def factor_of(module: nn.Module, kind: Kind) -> tuple[float, bool] | str:
    """The factor by which `module` multiplies the rows that it looks up, and whether it rounds the
    factor to their dtype first; or why it is not an embedding.

    The factor is NaN if it is in a buffer without data.
    """
    if inherits(module, kind.base):
        return 1.0, False
    if reason := _reads_its_input(module, kind.base):
        return reason
    other = f"computes something else than {kind.base.__name__}"
    ids = torch.tensor([[7, 3, 1, 0, 5], [2, 6, 4, 0, 7]], device="cpu")
    # Overwrite the buffers: the decision must not depend on whether they have data.
    twin = _Twin(module, kind, buffers_by_chance=True)
    for training in (False, True):
        if _factor(twin, ids, training) is None:
            return other
    if any(buffer.is_meta for buffer in _buffers(module).values()):
        return float("nan"), False
    twin = _Twin(module, kind)
    factor = _factor(twin, ids, False)
    if factor is None:
        return other
    twin.weight_to(torch.bfloat16)
    rows = F.embedding(ids, twin.parameters["weight"])
    found = twin.run(ids, type(module))
    for rounds in (False, True):
        by = torch.tensor(factor, dtype=rows.dtype, device="cpu") if rounds else factor
        if found is not None and found.dtype == rows.dtype and torch.equal(found, rows * by):
            return factor, rounds
    return other


def _factor(twin: "_Twin", ids: Tensor, training: bool) -> float | None:
    """The factor of the twin's rows; None if it does something else with them."""
    weight = twin.parameters["weight"]
    twin.parameters["weight"] = torch.ones_like(weight)
    ones = twin.run(ids, type(twin.module), training)
    twin.parameters["weight"] = weight
    rows = twin.run(ids, type(twin.module), training)
    if ones is None or rows is None or not ones.numel():
        return None
    factor = ones.flatten()[0].item()
    return factor if factor and _close(rows, F.embedding(ids, weight) * factor) else None


class _Twin:
    """Runs the code of `module` on ROWS rows of random float64 weights. `module` does not
    change."""

    def __init__(self, module: nn.Module, kind: Kind, buffers_by_chance: bool = False) -> None:
        self.module, self.rows = module, kind.rows
        matrix = _random(ROWS, kind.shape(module)[1])
        matrix[ROWS // 2 :] *= LARGE
        self.parameters = {"weight": matrix.t().contiguous() if kind.transposed else matrix}
        if module._parameters.get("bias") is not None:
            self.parameters["bias"] = _random(ROWS)
        self.buffers = {
            name: _random(*b.shape, dtype=b.dtype)
            if buffers_by_chance or b.is_meta
            else b.detach().cpu().clone()
            for name, b in _buffers(module).items()
        }

    def weight_to(self, dtype: torch.dtype) -> None:
        self.parameters["weight"] = self.parameters["weight"].to(dtype)

    def run(self, x: Tensor, kind: type[nn.Module], training: bool = False) -> Tensor | None:
        """The result of `forward` for x, or None if it raises, changes x, returns no tensor, or
        returns another result at a second call."""
        twin = object.__new__(type(self.module))
        own: dict[str, Any] = {
            k: v.copy() if isinstance(v, _CONTAINERS) else v for k, v in vars(self.module).items()
        }
        own |= {self.rows: ROWS, "training": training}
        if "padding_idx" in own:
            own["padding_idx"] = None  # it may lie beyond the few rows
        own |= {
            "_parameters": {**own["_parameters"], **_as_parameters(self.parameters)},
            "_buffers": {**own["_buffers"], **self.buffers},
        }
        vars(twin).update(own)
        given = x.clone()
        with _undisturbed():
            try:
                first, second = kind.forward(twin, given), kind.forward(twin, given)
            except Exception:
                return None
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return None
        same = torch.equal(first, second) and torch.equal(given, x)
        return first if same else None


def _as_parameters(tensors: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(t, requires_grad=False) for name, t in tensors.items()}


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A context without gradients and warnings, with new tensors on the CPU; it does not advance
    the random generators."""
    with (
        torch.no_grad(),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in module._buffers.items() if b is not None}


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random numbers of both signs, the same at every call."""
    chance = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=chance, dtype=torch.float64, device="cpu")
    if dtype.is_floating_point:
        return values.to(dtype)
    return torch.ones(shape, dtype=dtype, device="cpu")


def _close(found: Tensor, expected: Tensor) -> bool:
    return (
        found.shape == expected.shape
        and found.dtype == expected.dtype
        and torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    )


def _reads_its_input(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Why one run is not enough: `forward` branches on its input. Else None."""
    if "forward" in vars(module):
        return "has its own forward, set on the object"
    kinds = type(module).__mro__
    for kind in kinds[: kinds.index(base)]:
        forward = vars(kind).get("forward")
        if forward is None:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
        except (OSError, SyntaxError, TypeError):
            return "has a forward whose source cannot be read"
        if any(_chooses(node) for node in ast.walk(tree)):
            return "has a forward that chooses by what it is given"
    return None


def _chooses(node: ast.AST) -> bool:
    """Whether a statement branches on anything other than the module itself."""
    if isinstance(node, ast.Try | ast.Match):
        return True
    if not isinstance(node, ast.If | ast.IfExp | ast.While):
        return False
    return any(isinstance(n, ast.Name) and n.id != "self" for n in ast.walk(node.test))
