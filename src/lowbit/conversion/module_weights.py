"""A weight of a float model: its name, its kind, its shape, and whether it is transposed."""

from dataclasses import dataclass
from typing import Literal, Self

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowbit.conversion.probe import Kind, differs, factor_of


@dataclass(frozen=True)
class WeightName:
    """A weight by the module that holds it and the parameter's name there."""

    module: str
    parameter: str = "weight"

    def __str__(self) -> str:
        """Its name in the state dict."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    @property
    def place(self) -> str:
        """The name of the quantized module: the name of the weight's module, or of a module that
        replaces the parameter."""
        return self.module if self.parameter == "weight" else str(self)

    @classmethod
    def parse(cls, name: str) -> Self:
        """The inverse of `str`."""
        module, _, parameter = name.rpartition(".")
        return cls(module, parameter)

    def of(self, model: nn.Module) -> nn.Parameter:
        """The parameter itself, which `model` must have."""
        parameter = model.get_submodule(self.module)._parameters[self.parameter]
        assert parameter is not None
        return parameter


@dataclass(frozen=True)
class Weights:
    """How a module uses its weight: kind, shape [out, in], and whether it is transposed. Embeddings
    may multiply their rows by `embed_scale`; Gemma first rounds it to the dtype of the rows. A
    weight of `experts` has the rows of all experts, one expert after the other (experts.py)."""

    kind: Literal["linear", "embedding", "experts"]
    shape: tuple[int, int]
    transposed: bool = False
    embed_scale: float | None = None
    rounds_scale: bool = False
    experts: int = 1

    @property
    def takes_activations(self) -> bool:
        """Whether the weight is multiplied by activations, which can be quantized too."""
        return self.kind != "embedding"


LINEAR = (
    Kind(nn.Linear, "out_features", "in_features"),
    Kind(Conv1D, "nf", "nx", transposed=True),
)
EMBEDDING = Kind(nn.Embedding, "num_embeddings", "embedding_dim")
LAYERS = tuple(kind.base for kind in (*LINEAR, EMBEDDING))


def weights_of(module: nn.Module) -> Weights | str:
    """How the module uses its weight, or why it cannot be quantized.

    A subclass is supported if it computes the same (probe.py); BART's learned positions do not.
    Embeddings may scale their rows if the weight is their only tensor. The module needs no data.
    """
    name = type(module).__name__
    kind = next((k for k in (*LINEAR, EMBEDDING) if isinstance(module, k.base)), None)
    weight = module._parameters.get("weight")
    if kind is None or weight is None:
        return f"{name} is not a kind of module that can be quantized"
    others = [n for n, _ in module.named_parameters() if n not in ("weight", "bias")]
    if others:
        return f"{name} holds {', '.join(others)} beside its weight"
    if not weight.is_floating_point():
        return f"{name} has a weight of {weight.dtype}"
    if weight.shape != (kind.shape(module)[::-1] if kind.transposed else kind.shape(module)):
        return f"{name} has a weight of the shape {list(weight.shape)}"
    if kind is not EMBEDDING:
        reason = differs(module, kind)
        if reason is not None:
            return f"{name} {reason}"
        return Weights("linear", kind.shape(module), kind.transposed)
    max_norm: object = module.max_norm
    if max_norm is not None:
        return f"{name} renormalizes its rows (max_norm {max_norm})"
    factor = factor_of(module, kind)
    if isinstance(factor, str):
        return f"{name} {factor}"
    scale, rounds = factor
    return Weights("embedding", kind.shape(module), False, None if scale == 1 else scale, rounds)


def matrix(module: nn.Module, weights: Weights) -> Float[Tensor, "out in"]:
    """The weight of a float module as [out, in], detached."""
    weight = module._parameters["weight"]
    assert weight is not None
    return oriented(weight.detach(), weights)


def oriented(weight: Tensor, weights: Weights) -> Float[Tensor, "out in"]:
    """A weight in its module's orientation, turned to [out, in]."""
    if weights.kind == "experts":
        return (weight.transpose(1, 2) if weights.transposed else weight).flatten(0, 1)
    return weight.t().contiguous() if weights.transposed else weight


def as_stored(weight: Float[Tensor, "out in"], weights: Weights) -> Tensor:
    """The inverse of `oriented`."""
    if weights.kind == "experts":
        weight = weight.unflatten(0, (weights.experts, -1))
        return weight.transpose(1, 2).contiguous() if weights.transposed else weight
    return weight.t().contiguous() if weights.transposed else weight
