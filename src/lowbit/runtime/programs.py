"""The programs of a model: one per signature, built at its first call."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowbit.nn.hooks import has_hooks
from lowbit.runtime.capture import Captured, capture
from lowbit.runtime.held import Held
from lowbit.runtime.lower import Lowered, lower
from lowbit.runtime.operations import Sequences
from lowbit.runtime.padding import Padding, tolerated
from lowbit.runtime.signature import MASK, Signature, signature
from lowbit.runtime.values import UnservedError

NO_LIMIT = 1 << 20  # tokens

# Only one program is built at a time.
_MAKING = threading.Lock()
# The attribute of a model that holds its Programs.
_ATTRIBUTE = "_lowbit_programs"


@dataclass(frozen=True, eq=False, repr=False)
class Compiled:
    """A program with the steps of torch before and after it. names: the tensors in order."""

    names: tuple[str, ...]
    lowered: Lowered
    structure: pytree.TreeSpec
    held: Held
    padding: Padding
    captured: Captured

    def __call__(self, tensors: Mapping[str, Tensor]) -> Any:
        lowered = self.lowered
        given = [tensors[name] for name in self.names]
        before = lowered.before(*given)
        ids, inputs = before[: lowered.lookups], before[lowered.lookups :]
        layout = Rows.of(tensors.get(MASK), (*ids, *inputs))
        biases = [self._bias(run, heads, tensors) for run, heads in lowered.biases]
        call = Sequences(layout.starts, layout.places, [layout.of_ids(t) for t in ids], biases)
        results = lowered.program.run(call, [layout.packed(t) for t in inputs])
        spread = [layout.spread(t) for t in results]
        after = lowered.after(*given, *(spread[number] for number in lowered.ends))
        return pytree.tree_unflatten(after, self.structure)

    def _bias(
        self, run: Callable[..., tuple[Tensor]], heads: int, tensors: Mapping[str, Tensor]
    ) -> Tensor:
        """The positional bias [1, heads, length, length], as in a sequence without padding."""
        alone = {name: tensors[name][:1] for name in self.names}
        if MASK in alone:
            alone[MASK] = torch.ones_like(alone[MASK])
        (bias,) = run(*alone.values())
        return bias[:1].float().expand(1, heads, -1, -1).contiguous()


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of the tokens of a batch [batch, length]. there: their indices in the flat batch;
    None without padding."""

    batch: int
    length: int
    there: Tensor | None
    starts: Tensor
    places: Tensor

    @classmethod
    def of(cls, mask: Tensor | None, values: Sequence[Tensor]) -> "Rows":
        batch, length = max(t.shape[0] for t in values), values[0].shape[1]
        if mask is not None:
            exists = mask != 0
            there = exists.flatten().nonzero().flatten()
            if len(there) < batch * length:
                starts = torch.zeros(batch + 1, dtype=torch.int64)
                torch.cumsum(exists.sum(1), 0, out=starts[1:])
                return cls(batch, length, there, starts, there % length)
        starts = torch.arange(0, batch * length + 1, length)
        return cls(batch, length, None, starts, torch.arange(length).repeat(batch))

    def of_ids(self, ids: Tensor) -> Tensor:
        flat = ids.expand(self.batch, self.length).reshape(-1)
        return flat.contiguous() if self.there is None else flat[self.there]

    def packed(self, x: Tensor) -> Tensor:
        flat = x.expand(self.batch, -1, -1).reshape(-1, x.shape[-1])
        return flat.contiguous() if self.there is None else flat[self.there]

    def spread(self, rows: Tensor) -> Tensor:
        if self.there is not None:
            rows = rows.new_zeros(self.batch * self.length, rows.shape[1]).index_copy_(
                0, self.there, rows
            )
        return rows.view(self.batch, self.length, -1)


class Programs:
    """The programs of one model.

    made: the program of each signature, or the reason why there is none. saved: graphs that another
    process saved.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.made: dict[Signature, Compiled | str] = {}
        self.saved: dict[Signature, Captured] = {}
        self.hooks: list[Any] | None = None  # all dictionaries of hooks

    @classmethod
    def of(cls, model: nn.Module) -> "Programs":
        """The programs of a model. Creates and attaches them if needed."""
        found = cls.held_by(model)
        if found is None:
            found = model.__dict__[_ATTRIBUTE] = cls(model)
        return found

    @classmethod
    def held_by(cls, model: nn.Module) -> "Programs | None":
        found = model.__dict__.get(_ATTRIBUTE)
        return found if isinstance(found, cls) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Programs":
        """A copy belongs to the copied model and builds its own programs."""
        return Programs(memo[id(self.model)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Programs, (self.model,)

    def served(self, arguments: Mapping[str, Any]) -> Compiled | str:
        """The program for a call, or the reason why there is none."""
        if self.model.training:
            return "A model in training mode is not run as a program."
        if torch.is_grad_enabled():
            return "A call that records gradients is not run as a program: use torch.no_grad()."
        if torch.is_autocast_enabled("cpu"):
            return "A call under autocast is not run as a program."
        if any(self._hooks()) and any(has_hooks(m) for m in self._others()):
            return "A model whose modules have hooks is not run as a program."
        found = signature(arguments)
        if isinstance(found, str):
            return f"A program cannot serve this call: {found}."
        mask = arguments.get(MASK)
        if mask is not None and any(
            isinstance(t, Tensor) and not t.is_floating_point() and t.shape[:2] != mask.shape
            for t in arguments.values()
        ):
            return "Arguments of other lengths than the attention mask are not run as a program."
        if mask is not None and not (mask.dim() == 2 and bool((mask != 0).any(1).all())):
            return "An attention mask of other dimensions, or of no token, is not run as a program."
        made = self._current(found)
        if made is None:
            with _MAKING:
                made = self._current(found)
                if made is None:
                    self.hooks = None  # modules may have changed
                    made = self.made[found] = self._made(found, arguments)
        if isinstance(made, Compiled) and mask is not None and not made.padding(mask != 0):
            return "This padding is not run as a program: something counts places or reads it."
        return made

    def _current(self, found: Signature) -> Compiled | str | None:
        """The program or reason of a signature, if the model has not changed since."""
        made = self.made.get(found)
        return None if isinstance(made, Compiled) and not made.held.still() else made

    def _hooks(self) -> list[Any]:
        if self.hooks is None:
            found = [(m._forward_hooks, m._forward_pre_hooks) for m in self._others()]
            self.hooks = [hooks for each in found for hooks in each]
        return self.hooks

    def _others(self) -> list[nn.Module]:
        """All modules but the model itself, whose hooks are called in any case."""
        return [module for module in self.model.modules() if module is not self.model]

    def _made(self, found: Signature, arguments: Mapping[str, Any]) -> Compiled | str:
        tensors = {n: v for n, v in arguments.items() if isinstance(v, Tensor)}
        others = {n: v for n, v in arguments.items() if n not in tensors}
        model = self.model
        replaced = model.__dict__.pop("forward", None)
        try:
            captured = self.saved.pop(found, None)
            if captured is None or not captured.still():
                captured = capture(model, tensors, others)
            with torch.no_grad():
                lowered = lower(captured, _limit(model))
        except UnservedError as why:
            return f"This model is not run as a program: {why}."
        except Exception as error:  # of torch.export, for models that it cannot trace
            first = str(error).strip().partition("\n")[0]
            return f"torch.export cannot follow this model: {type(error).__name__}: {first}."
        finally:
            if replaced is not None:
                model.forward = replaced
        names = captured.arguments
        mask = names.index(MASK) if MASK in names else None
        padding = tolerated(lowered, [tensors[name] for name in names], mask)
        if padding is None:
            return "This model is not run as a program: what follows it reads padded tokens."
        held = Held.of(lowered.program.operations, captured)
        return Compiled(names, lowered, captured.structure, held, padding, captured)


def _limit(model: nn.Module) -> int:
    """The most tokens of a sequence, as the model declares."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else NO_LIMIT
