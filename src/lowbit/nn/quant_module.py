"""The base of modules with a quantized weight: QuantLinear and QuantEmbedding.

The stored tensors are persistent buffers under their names in the format ("codes", "scale", …),
with the stored shape and dtype. A tied module has no tensors, but refers to the module that has
them.

If native code serves the module, the first forward pass *packs* the weight: one tensor in the order
that the kernels read (kernels/packed_layout.py), which is never saved, replaces the stored tensors,
and their buffers stay without data. A tied module uses the packed weight of the other module.
Reading the stored weight (state_dict, `.to()`, `stored_weight`) unpacks it bit for bit, and the
next forward pass packs it again. There is never a second copy.
"""

import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowbit.errors import UsageError
from lowbit.fallbacks import note
from lowbit.formats import Layout, QTensor, prefix
from lowbit.kernels import ops
from lowbit.kernels.checks import check_tensors
from lowbit.kernels.operator import differentiated
from lowbit.kernels.selection import Kernel
from lowbit.nn.decoded_weight import DecodedWeight
from lowbit.nn.packed_weight import PackedWeight
from lowbit.nn.pages import page_out

# Only one module packs or unpacks at a time; it takes less than a millisecond.
_CHANGING = threading.RLock()


class QuantModule(nn.Module):
    """A module with a quantized tensor [rows, columns]. float_shape: the shape of the float
    weight."""

    compute: nn.Parameter
    tied_to: "QuantModule | None"
    replaced: nn.Module | None
    packed: PackedWeight | None

    def __init__(
        self, layout: Layout, rows: int, columns: int, float_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.layout = layout
        self.rows, self.columns = rows, columns
        self.float_shape = float_shape
        # Not a registered submodule, so that tied tensors are counted and saved once.
        object.__setattr__(self, "tied_to", None)
        object.__setattr__(self, "replaced", None)
        # A plain attribute: a buffer would count in addition to the tensors that it replaces.
        self.packed = None
        self.in_file = False  # whether stored tensors are on pages of a mapped file
        self.planes_in_use: int | None = None
        for name, (shape, dtype) in layout.tensors(rows, columns).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        # An empty parameter that is never saved. It follows `.to(dtype)` like a float weight, and
        # code that reads dtype and device from the first parameter finds the right ones. Its name
        # must not be `compute_dtype` (PEFT expects a dtype) or `qweight` (PEFT expects a tensor).
        self.compute = _empty_parameter(torch.float32, torch.device("cpu"))

    def hold(self, q: QTensor) -> Self:
        """Take over the tensors of q, which must have this module's layout and shape."""
        if q.layout != self.layout or q.shape != (self.rows, self.columns):
            raise ValueError(
                f"{q.layout} {q.shape} does not fit {self.layout} {(self.rows, self.columns)}"
            )
        self.restore_stored()
        for name, tensor in q.tensors().items():
            setattr(self, name, tensor)
        self.in_file = False
        return self

    def tie(self, source: "QuantModule") -> Self:
        """Share the stored tensors of `source`."""
        for name in self.layout.tensors(self.rows, self.columns):
            delattr(self, name)
        object.__setattr__(self, "tied_to", source)
        return self

    @property
    def owner(self) -> "QuantModule":
        """The module with the weight: this one, or the one that it is tied to."""
        return self if self.tied_to is None else self.tied_to

    def stand_in_for(self, module: nn.Module, compute: Tensor) -> None:
        """Keep the float module without data, to restore it later. Compute like `compute`."""
        self.compute_like(compute)
        module.weight = nn.Parameter(
            torch.empty(self.float_shape, dtype=compute.dtype, device="meta")
        )
        object.__setattr__(self, "replaced", module)

    def compute_like(self, compute: Tensor) -> None:
        """Compute in the dtype and on the device of `compute`."""
        device = "cpu" if compute.is_meta else compute.device
        self.compute = _empty_parameter(compute.dtype, torch.device(device))

    def follow_stored(self) -> None:
        """Compute on the device of the stored tensors. A loader sets them itself, on pages of the
        file that it has mapped."""
        owner = self.owner
        owner.in_file = True
        device = owner._buffers[owner.layout.names[0]].device  # type: ignore[union-attr]
        if device != self.compute.device:
            self.compute = _empty_parameter(self.compute.dtype, device)

    def own_stored(self) -> dict[str, torch.dtype]:
        """Names and dtypes of the tensors saved with the weight, one number each."""
        return {}

    def saved(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stored tensor of this module, by name."""
        weight = self.layout.tensors(self.rows, self.columns) if self.tied_to is None else {}
        return weight | {name: ((), dtype) for name, dtype in self.own_stored().items()}

    @property
    def stored_weight(self) -> QTensor:
        """The stored weight, unpacked if necessary."""
        owner = self.owner
        if torch.compiler.is_compiling():  # a lock cannot be traced, and is not needed
            return owner._assembled()
        with _CHANGING:
            owner.restore_stored()
            return owner._assembled()

    @property
    def weight_in_use(self) -> QTensor:
        """The stored weight, or the planes of it that `use_planes` selected."""
        q, planes = self.stored_weight, self.owner.planes_in_use
        return q if planes is None else prefix(q, planes)

    def use_planes(self, planes: int) -> None:
        """Compute with the first `planes` of a binary weight. All planes stay stored.

        Raises UsageError if the weight has no α for this number of planes.
        """
        assert self.layout.prefixes and self.tied_to is None
        if planes not in self.layout.prefixes:
            raise UsageError(
                f"{planes} planes are not available: this weight supports"
                f" {', '.join(map(str, self.layout.prefixes))}"
            )
        with _CHANGING:
            self.planes_in_use = None if planes == self.layout.prefixes[-1] else planes
            if self.packed is not None:
                self.packed = self.packed.using(self.planes_in_use)

    def _assembled(self) -> QTensor:
        return self.layout.assemble(self._buffers, self.columns)  # type: ignore[arg-type]

    def _check_stored(self) -> None:
        """Raises UsageError if buffers were replaced by tensors that do not fit: native code gets
        only their addresses."""
        stored = {name: self._buffers[name] for name in self.layout.names}
        wanted = self.layout.tensors(self.rows, self.columns)
        check_tensors(stored, wanted, torch.device("cpu"))  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The float weight. Its numbers are decoded when they are needed (decoded_weight.py)."""
        if torch.compiler.is_compiling():
            return self.decoded()
        like = torch.empty(self.float_shape, dtype=self.compute.dtype, device="meta")
        device = self.compute.device
        return DecodedWeight(like, device, self._decoded_for_a_reader, self.rescale)

    def decoded(self) -> Tensor:
        """The float weight [rows, columns] in the compute dtype. The module stays packed."""
        packed, dtype = self.owner.packed, self.compute.dtype
        if packed is None:
            return ops.dequantize(self.weight_in_use, dtype)
        return ops.embedding_packed(torch.arange(self.rows), packed.bytes, packed.layout, dtype)

    def _decoded_for_a_reader(self) -> Tensor:
        note(self, "Code reads the weight itself, which is decoded for it.", warn=False)
        with torch.no_grad():
            return self.decoded()

    def rescale(self, factor: float) -> None:
        """Multiply the weight by a positive number, by multiplying its scales. Powers of two are
        exact. Raises UsageError if a scale would leave the normal range of its dtype.
        """
        owner = self.owner
        with _CHANGING, torch.inference_mode(False), torch.no_grad():
            scales = {
                name: tensor
                for name, tensor in owner.stored_weight.tensors().items()
                if tensor.is_floating_point()
            }
            scaled = {name: _scaled(scale, factor) for name, scale in scales.items()}
            for name, scale in scaled.items():
                setattr(owner, name, scale)

    @abstractmethod
    def choose(self) -> tuple[Kernel, str]:
        """The kernel of this module on this machine, and the reason for its choice."""

    def kernel(self) -> str:
        """The kernel and the reason in a few words."""
        return self.choose()[1]

    def pack(self) -> PackedWeight | None:
        """The packed weight, created at the first call; None if the reference serves the module."""
        owner = self.owner
        packed = owner.packed
        if packed is not None or not owner.rows:
            return packed
        if torch.compiler.is_compiling() or differentiated():  # tensors have no memory
            return None
        if owner.choose()[0].name == "reference":
            return None
        # Not as inference tensors: later calls may need gradients.
        with _CHANGING, torch.inference_mode(False), _untraced():
            packed = owner.packed
            if packed is None:
                owner._check_stored()
                q = owner._assembled()
                packed = owner.packed = PackedWeight.of(q, owner.planes_in_use)
                for name, tensor in q.tensors().items():
                    if owner.in_file:
                        page_out(tensor)
                    setattr(owner, name, tensor.to("meta"))
                owner.in_file = False
            return packed

    def restore_stored(self) -> None:
        """Unpack the stored tensors if the weight is packed."""
        with _CHANGING, torch.inference_mode(False), _untraced():
            if self.packed is not None:
                for name, tensor in self.packed.stored().tensors().items():
                    setattr(self, name, tensor)
                self.packed = None

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        with _CHANGING:
            self.restore_stored()
            super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}compute"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        with _CHANGING:
            self.restore_stored()
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, *others
            )
        if strict:
            missing_keys.remove(f"{prefix}compute")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stored tensors follow a change of device but never a change of dtype.

        A packed weight stays packed unless it leaves the CPU, because some libraries move a model
        to its own device before every batch.
        """
        if self._stays(fn):
            return self
        with _CHANGING:
            packed = self.packed
            if packed is not None and fn(packed.bytes.new_empty(0)).device != packed.bytes.device:
                self.restore_stored()
            names = self.saved() if self.packed is None else self.own_stored()
            stored = {id(self._buffers[name]) for name in names}
            empty = {id(self._buffers[name]) for name in self.saved().keys() - names.keys()}

            def apply(tensor: Tensor) -> Tensor:
                if id(tensor) in empty:
                    return tensor
                moved = fn(tensor)
                if id(tensor) in stored and moved.dtype != tensor.dtype:
                    return tensor.to(moved.device)
                return moved

            super()._apply(apply, recurse)
            if self.packed is not None:
                moved = fn(self.packed.bytes)
                if moved is not self.packed.bytes and moved.dtype == self.packed.bytes.dtype:
                    self.packed = PackedWeight(self.packed.layout, moved)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles, taken at one moment: meanwhile another thread may pack
        or unpack the weight."""
        with _CHANGING:
            return {**vars(self), "_buffers": dict(self._buffers)}

    def _stays(self, fn: Callable[[Tensor], Tensor]) -> bool:
        """Whether fn returns every tensor as it is."""
        held = [*self._parameters.values(), *self._buffers.values()]
        if self.packed is not None:
            held = [self.packed.bytes, *(t for t in held if t is not None and not t.is_meta)]
        return all(t is None or (t.grad is None and fn(t) is t) for t in held)

    def __getattr__(self, name: str) -> Any:
        """Attributes that only the float module has, such as `padding_idx`, come from it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            replaced = self.__dict__.get("replaced")
            if name.startswith("_") or replaced is None:
                raise
            value = getattr(replaced, name, None)
            # Its methods would compute with a weight without data.
            if value is None and name not in vars(replaced) or inspect.ismethod(value):
                raise
            return value

    def describe(self) -> str:
        """Format, bits and granularity in a few words."""
        planes = self.owner.planes_in_use
        part = "" if planes is None else f", first {planes} planes"
        return f"{self.layout}{part}"


@contextmanager
def _untraced() -> Iterator[None]:
    """A context in which torch.jit.trace records nothing, so that it takes results as constants."""
    state: Any = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    change: Callable[[Any], None] = torch._C._set_tracing_state  # type: ignore[attr-defined]
    change(None)
    try:
        yield
    finally:
        change(state)


def _scaled(scale: Tensor, factor: float) -> Tensor:
    exact = scale.double() * factor
    stored = exact.to(scale.dtype)
    # The largest relative error of rounding a normal number to the dtype.
    precise = (stored.double() - exact).abs() <= exact.abs() * torch.finfo(scale.dtype).eps / 2
    if not bool(precise.all()):
        raise UsageError(
            f"the weight of a quantized layer cannot be multiplied by {factor:g}: its scales would"
            f" leave the range of {scale.dtype}; change the float model, or quantize with scales in"
            " float32"
        )
    return stored


def _empty_parameter(dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    made = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
    made._is_hf_initialized = True  # type: ignore[attr-defined]
    return made


def is_quantized(model: nn.Module) -> bool:
    """Whether any submodule has a quantized tensor."""
    return any(isinstance(module, QuantModule) for module in model.modules())
