"""What a recipe does to a model: every module that carries weights is quantized or named as kept.

Nothing here touches a weight: a model on the meta device will do.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lowbit.conversion.foreign import check_parameters, check_plain
from lowbit.conversion.module_weights import LAYERS, Weights, weights_of
from lowbit.conversion.recipe import KINDS, Recipe, Rule
from lowbit.conversion.swap import named_places
from lowbit.errors import InputError, UsageError
from lowbit.nn import is_quantized


@dataclass(frozen=True)
class Decision:
    """What happens to the weights of one module, and why.

    `weights` is None for a module of a kind that cannot be quantized; `rule` is None for one that
    is kept. A tied module uses the stored weight of `tied_to` and has no parameters of its own.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    parameters: int
    weights: Weights | None
    rule: Rule | None
    reason: str
    tied_to: str | None = None

    @property
    def quantized(self) -> bool:
        return self.rule is not None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "module": self.module,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "quantized": self.quantized,
            "reason": self.reason,
            "tied_to": self.tied_to,
        }


@dataclass(frozen=True)
class Fate:
    """Modules that share a decision, with the name of the first."""

    quantized: bool
    reason: str
    modules: int
    parameters: int
    example: str


@dataclass(frozen=True)
class Coverage:
    """All decisions, and the parameters in vectors (norms, biases), which always stay float."""

    decisions: tuple[Decision, ...]
    vector_parameters: int

    @property
    def quantized(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.quantized)

    @property
    def kept(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if not d.quantized)

    @property
    def parameters(self) -> int:
        return self.vector_parameters + sum(d.parameters for d in self.decisions)

    @property
    def quantized_parameters(self) -> int:
        return sum(d.parameters for d in self.quantized)

    @property
    def share(self) -> float:
        """The share of all parameters that is quantized, 0 … 1."""
        return self.quantized_parameters / max(1, self.parameters)

    def fates(self) -> list["Fate"]:
        """Modules of one type with the same reason counted together, in the order of the model."""
        together: dict[tuple[bool, str, str], list[Decision]] = {}
        for d in self.decisions:
            together.setdefault((d.quantized, d.reason, d.module), []).append(d)
        return [
            Fate(
                quantized, f"{module}: {reason}", len(ds), sum(d.parameters for d in ds), ds[0].name
            )
            for (quantized, reason, module), ds in together.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "quantized_parameters": self.quantized_parameters,
            "vector_parameters": self.vector_parameters,
            "share": self.share,
            "modules": [d.to_dict() for d in self.decisions],
        }


def cover(model: nn.Module, recipe: Recipe) -> Coverage:
    """Decide for every place where a module stands. A module in several places is tied to itself.

    Raises UsageError for a pattern of names that matches nothing, a recipe that would quantize
    nothing or is strict and cannot be met, and a model that is itself a layer; InputError for a
    model that is quantized already, has adapters, or computes a weight that is to be quantized.
    """
    if is_quantized(model):
        raise InputError("the model is already quantized with lowbit; quantize the float model")
    check_plain(model)
    if isinstance(weights_of(model), Weights):
        raise UsageError(
            f"a {type(model).__name__} is replaced in the module that holds it:"
            " quantize that one, or nn.Sequential(layer)"
        )
    ties = tied_modules(model)
    heads = _head_names(model)
    decisions = []
    vectors = 0
    unmatched = {rule.match for rule in recipe.rules if rule.match not in KINDS}
    seen: set[int] = set()
    for name, module in named_places(model):
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) not in seen}
        tied = name in ties
        if not tied:
            seen.update(map(id, own.values()))
        vectors += sum(p.numel() for p in own.values() if p.ndim < 2)
        matrices = {n: p for n, p in module.named_parameters(recurse=False) if p.ndim >= 2}
        if isinstance(module, LAYERS):
            _check_computed(name, module, name in heads, recipe)
        elif not matrices:
            continue
        kinds = _kinds(module, name in heads)
        unmatched -= {rule.match for rule in recipe.rules if rule.matches(name, kinds)}
        if matrices:
            decisions.append(_decide(name, module, matrices, kinds, ties.get(name), recipe))
    if unmatched:
        raise UsageError(
            f"pattern {sorted(unmatched)[0]!r} matches no module with weights"
            f" of {type(model).__name__}"
        )
    decisions = list(_follow_ties(decisions))
    coverage = Coverage(tuple(decisions), vectors)
    if not coverage.quantized:
        kept = coverage.kept
        detail = f"{kept[0].name} is kept: {kept[0].reason}" if kept else "it has no weights"
        raise UsageError(
            f"recipe {recipe.name} quantizes nothing in {type(model).__name__}"
            f" ({len(kept)} modules with weights; {detail})"
        )
    return coverage


def _check_computed(name: str, module: nn.Module, head: bool, recipe: Recipe) -> None:
    """Raises InputError if `recipe` would quantize a layer whose weight is computed from others."""
    kind = "@embedding" if isinstance(module, nn.Embedding) else "@linear"
    rule = recipe.rule_for(name, frozenset([kind, "@head"] if head else [kind]))
    if rule is not None and rule.scheme is not None:
        check_parameters(name, module)


def check_static(coverage: Coverage, known: Collection[str] = ()) -> None:
    """Raises UsageError where activations are static and their scale is not `known`."""
    for d in coverage.quantized:
        if d.rule is not None and d.rule.is_static and d.name not in known:
            raise UsageError(
                f"{d.name} has static activations, whose scale is found in data:"
                " give calibration data, or train with prepare_qat"
            )


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Target -> source for every place whose weight is that of another place.

    What is shared counts, not what is declared; but a model on the meta device that is about to
    be loaded is not tied yet, and there the declaration is all there is.
    """
    declared = {
        prefix + target.removesuffix(".weight"): prefix + source.removesuffix(".weight")
        for prefix, inner in transformers_inside(model)
        for target, source in getattr(inner, "all_tied_weights_keys", {}).items()
        if target.endswith(".weight")
    }
    weights = {
        name: weight
        for name, module in named_places(model)
        if (weight := module._parameters.get("weight")) is not None
    }
    sources = set(declared.values())
    owner: dict[int, str] = {}
    ties: dict[str, str] = {}
    # Declared sources first, so that they own the weight they share.
    for name in sorted(weights, key=lambda name: name not in sources):
        first = owner.setdefault(id(weights[name]), name)
        if first != name:
            ties[name] = first
        elif weights[name].is_meta and declared.get(name) in weights:
            ties[name] = declared[name]
    return ties


def transformers_inside(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """The transformers models in it that are in no other one, each with the prefix of its names: of
    such a model itself, itself and ""."""
    found: list[tuple[str, PreTrainedModel]] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        inside = any(prefix.startswith(outer) for outer, _ in found)
        if isinstance(module, PreTrainedModel) and not inside:
            found.append((prefix, module))
    return found


def _head_names(model: nn.Module) -> set[str]:
    """Of each transformers model: output embeddings, and every module outside the base model if
    there is one inside. Other modules have no heads but those that a recipe names."""
    heads = set()
    for prefix, inner in transformers_inside(model):
        output = inner.get_output_embeddings()
        heads |= {prefix + name for name, module in named_places(inner) if module is output}
        if inner.base_model is not inner:
            base = inner.base_model_prefix
            heads |= {prefix + n for n, _ in named_places(inner) if n.partition(".")[0] != base}
    return heads


def _kinds(module: nn.Module, head: bool) -> frozenset[str]:
    weights = weights_of(module)
    kind = weights.kind if isinstance(weights, Weights) else ""
    return frozenset([f"@{kind}", "@head"] if head and kind == "linear" else [f"@{kind}"])


def _decide(
    name: str,
    module: nn.Module,
    matrices: dict[str, nn.Parameter],
    kinds: frozenset[str],
    tied_to: str | None,
    recipe: Recipe,
) -> Decision:
    found = weights_of(module)
    shape = tuple(next(iter(matrices.values())).shape)
    rule: Rule | None = None
    weights: Weights | None = None
    if isinstance(found, str):
        reason = found
    else:
        weights = found
        rule = recipe.rule_for(name, kinds)
        if rule is None:
            reason = "no rule matches"
        elif rule.scheme is None:
            reason, rule = f"recipe {recipe.name} keeps {rule.match}", None
        else:
            reason = f"rule {rule.match}"
        misfit = _misfit(rule, weights)
        if misfit and recipe.strict:
            raise UsageError(f"{name}: {misfit}")
        if misfit:
            rule, reason = None, misfit
    count = 0 if tied_to else sum(p.numel() for p in matrices.values())
    return Decision(name, type(module).__name__, shape, count, weights, rule, reason, tied_to)


def _misfit(rule: Rule | None, weights: Weights) -> str | None:
    """Why the scheme of this rule cannot hold a weight of this shape, or None."""
    if rule is None or rule.scheme is None:
        return None
    return rule.scheme.misfit(*weights.shape)


def _follow_ties(decisions: list[Decision]) -> Iterator[Decision]:
    """Modules that share a weight share its fate: one stored weight, or float for all of them."""
    by_name = {d.name: d for d in decisions}
    blocked = {d.tied_to: d for d in decisions if d.tied_to and d.weights is None}
    for d in decisions:
        block = blocked.get(d.tied_to or d.name)
        if block is not None:
            yield replace(
                d, rule=None, reason=f"shares its weight with {block.name}: {block.reason}"
            )
        elif d.tied_to is None:
            yield d
        else:
            source = by_name[d.tied_to].rule
            activations = d.rule.activations if d.rule else "float"
            rule = Rule(d.name, source.scheme, activations) if source else None
            yield replace(d, rule=rule, reason=f"tied to {d.tied_to}")
