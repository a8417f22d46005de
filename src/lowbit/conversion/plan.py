"""The plan of a recipe for a model: each weight is quantized, tied or kept, with the reason.

Planning reads no numbers, so the model may be on the meta device.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from jaxtyping import Float
from torch import Tensor, nn

from lowbit.conversion.experts import experts_weights, router_names, weights_in
from lowbit.conversion.foreign import check_parameters, check_plain
from lowbit.conversion.module_weights import LAYERS, WeightName, Weights, oriented, weights_of
from lowbit.conversion.recipe import KINDS, Recipe, Rule
from lowbit.conversion.ties import named_places, tied_weights, transformers_inside
from lowbit.errors import InputError, UsageError, naming
from lowbit.formats import ExpertsTensor, PlainTensor, QTensor
from lowbit.nn import STATIC, is_quantized
from lowbit.schemes import Scheme

ROUTER = "it chooses among experts, which small errors change"


@dataclass(frozen=True)
class Decision:
    """The decision for one weight, with its reason: a `Quantize`, a `TiedTo` or a `Keep`.

    module: the class of the weight's module. parameters: 0 for a weight that is shared with
    another.
    """

    weight: WeightName
    module: str
    shape: tuple[int, ...]
    parameters: int
    reason: str
    quantized: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name in config.json and reports: the name of the module, or of the weight if the
        module has several."""
        return self.weight.place

    @property
    def tied_to(self) -> str | None:
        """The name of the weight that this one shares, if any."""
        return None

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
class Quantize(Decision):
    """The weight is quantized by `scheme`, and its module computes with these activations."""

    weights: Weights
    scheme: Scheme
    activations: str

    def matrix(self, model: nn.Module) -> Float[Tensor, "out in"]:
        """The weight of the float `model`, detached."""
        return oriented(self.weight.of(model).detach(), self.weights)

    def nearest(self, matrix: Float[Tensor, "out in"]) -> QTensor:
        """The quantized tensor by nearest rounding. Errors name the weight."""
        with naming(str(self.weight)):
            return self.by_expert(matrix, self.scheme.quantize)

    def by_expert(
        self, matrix: Float[Tensor, "out in"], solve: Callable[[Tensor], QTensor]
    ) -> QTensor:
        """Call `solve` on the weight, or on the weight of each expert."""
        if self.weights.kind != "experts":
            return solve(matrix)
        each = map(solve, matrix.unflatten(0, (self.weights.experts, -1)))
        return ExpertsTensor.of(cast(Iterator[PlainTensor], each), self.weights.experts)

    def of_one_expert(self) -> "Quantize":
        """The decision for the weight of a single expert."""
        (rows, columns), experts = self.weights.shape, self.weights.experts
        own = Weights("linear", (rows // experts, columns), self.weights.transposed)
        return replace(self, weights=own)


@dataclass(frozen=True)
class TiedTo(Decision):
    """The module shares the quantized weight of `source`, and has its own kind of activations."""

    weights: Weights
    source: Quantize
    activations: str

    @property
    def tied_to(self) -> str:
        return self.source.name


@dataclass(frozen=True)
class Keep(Decision):
    """The weight stays float, for `reason`. source: the weight that it shares, if any."""

    source: WeightName | None = None
    quantized: ClassVar[bool] = False

    @property
    def tied_to(self) -> str | None:
        return self.source.place if self.source else None


@dataclass(frozen=True)
class Summary:
    """Modules that share a decision, with the name of the first."""

    quantized: bool
    reason: str
    modules: int
    parameters: int
    example: str


@dataclass(frozen=True)
class Plan:
    """The decisions of `recipe` for all weights of a model, and the number of parameters in vectors
    (norms, biases), which always stay float."""

    recipe: Recipe
    decisions: tuple[Quantize | TiedTo | Keep, ...]
    vector_parameters: int

    @property
    def owners(self) -> tuple[Quantize, ...]:
        """The weights to quantize, without duplicates."""
        return tuple(d for d in self.decisions if isinstance(d, Quantize))

    @property
    def tied(self) -> tuple[TiedTo, ...]:
        return tuple(d for d in self.decisions if isinstance(d, TiedTo))

    @property
    def quantized(self) -> tuple[Quantize | TiedTo, ...]:
        return tuple(d for d in self.decisions if not isinstance(d, Keep))

    @property
    def kept(self) -> tuple[Keep, ...]:
        return tuple(d for d in self.decisions if isinstance(d, Keep))

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

    def summaries(self) -> list[Summary]:
        """Modules with the same class and reason, counted together, in the order of the model."""
        together: dict[tuple[bool, str, str], list[Decision]] = {}
        for d in self.decisions:
            together.setdefault((d.quantized, d.reason, d.module), []).append(d)
        return [
            Summary(
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


def make_plan(model: nn.Module, recipe: Recipe) -> Plan:
    """Decide for every name of a module. A module with several names is tied to itself.

    Raises UsageError if a pattern of names matches nothing, the recipe would quantize nothing, a
    strict recipe does not fit a weight, or the model is itself a layer. Raises InputError if the
    model is already quantized or has adapters, or if a weight to quantize is computed from others.
    """
    if is_quantized(model):
        raise InputError("the model is already quantized with lowbit; quantize the float model")
    check_plain(model)
    if isinstance(weights_of(model), Weights):
        raise UsageError(
            f"a {type(model).__name__} is replaced in the module that holds it:"
            " quantize that one, or nn.Sequential(layer)"
        )
    ties = tied_weights(model)
    heads, routers = _head_names(model), router_names(model)
    decisions: list[Quantize | Keep] = []
    uses: dict[WeightName, Weights | str] = {}
    vectors = 0
    unmatched = {rule.match for rule in recipe.rules if rule.match not in KINDS}
    seen: set[int] = set()
    for name, module in named_places(model):
        tied = WeightName(name) in ties
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) not in seen}
        if not tied:
            seen.update(map(id, own.values()))
        matrices = {n: p for n, p in module.named_parameters(recurse=False) if p.ndim >= 2}
        experts = experts_weights(module)
        # The biases of experts form a matrix, but are vectors of each expert.
        beside = {n for n in own if experts and n not in experts}
        vectors += sum(p.numel() for n, p in own.items() if p.ndim < 2 or n in beside)
        if experts and not own:
            continue  # It also has another name.
        if isinstance(module, LAYERS):
            _check_computed(name, module, name in heads, recipe)
        elif not matrices:
            continue
        for parameter, use in weights_in(module).items():
            weight = WeightName(name, parameter)
            uses[weight] = use
            kinds = _kinds(use, name in heads, name in routers)
            unmatched -= {rule.match for rule in recipe.rules if rule.matches(weight.place, kinds)}
            held = {parameter: matrices[parameter]} if experts else matrices
            if held:
                decisions.append(_decide(weight, module, held, use, kinds, tied, recipe))
    if unmatched:
        raise UsageError(
            f"pattern {sorted(unmatched)[0]!r} matches no module with weights"
            f" of {type(model).__name__}"
        )
    plan = Plan(recipe, tuple(_follow_ties(decisions, ties, uses)), vectors)
    if not plan.quantized:
        kept = plan.kept
        detail = f"{kept[0].name} is kept: {kept[0].reason}" if kept else "it has no weights"
        raise UsageError(
            f"recipe {recipe.name} quantizes nothing in {type(model).__name__}"
            f" ({len(kept)} modules with weights; {detail})"
        )
    return plan


def _check_computed(name: str, module: nn.Module, head: bool, recipe: Recipe) -> None:
    """Raises InputError if `recipe` would quantize a weight that is computed from others."""
    kind = "@embedding" if isinstance(module, nn.Embedding) else "@linear"
    rule = recipe.rule_for(name, frozenset([kind, "@head"] if head else [kind]))
    if rule is not None and rule.scheme is not None:
        check_parameters(name, module)


def check_static(plan: Plan, known: Collection[str] = ()) -> None:
    """Raises UsageError if activations are static and their scale is not `known`."""
    for d in plan.quantized:
        if d.activations in STATIC and d.name not in known:
            raise UsageError(
                f"{d.name} has static activations, whose scale needs data:"
                " give calibration data (--calibration FILE), or train with prepare_qat (--qat)"
            )


def check_no_experts(plan: Plan, learner: str) -> None:
    """Raises UsageError if `learner`, which learns from data, would change weights of experts."""
    for d in plan.owners:
        if d.weights.kind == "experts":
            raise UsageError(
                f"{learner} does not support experts such as {d.name}, because each expert sees"
                ' other data: keep experts float ({match: "@experts", keep: true}),'
                " or quantize without data"
            )


def scheme_for(model: nn.Module, name: str, weights: Weights, recipe: Recipe) -> Scheme | None:
    """The scheme of `recipe` for the weight of the module `name`, which may already be quantized;
    None if the recipe keeps it."""
    kinds = _kinds(weights, name in _head_names(model), name in router_names(model))
    rule = recipe.rule_for(name, kinds)
    return None if rule is None else rule.scheme


def _head_names(model: nn.Module) -> set[str]:
    """The heads of each transformers model: output embeddings, and all modules outside its base
    model. Other modules have no heads."""
    heads = set()
    for prefix, inner in transformers_inside(model):
        output = inner.get_output_embeddings()
        heads |= {prefix + name for name, module in named_places(inner) if module is output}
        if inner.base_model is not inner:
            base = inner.base_model_prefix
            heads |= {prefix + n for n, _ in named_places(inner) if n.partition(".")[0] != base}
    return heads


def _kinds(use: Weights | str, head: bool, router: bool) -> frozenset[str]:
    """The kinds of a module for rules. Experts and heads are also "@linear"; routers are only
    "@router"."""
    kind = use.kind if isinstance(use, Weights) else ""
    if router:
        return frozenset(["@router"])
    if kind == "experts":
        return frozenset(["@experts", "@linear"])
    return frozenset([f"@{kind}", "@head"] if head and kind == "linear" else [f"@{kind}"])


def _decide(
    weight: WeightName,
    module: nn.Module,
    matrices: dict[str, nn.Parameter],
    use: Weights | str,
    kinds: frozenset[str],
    tied: bool,
    recipe: Recipe,
) -> Quantize | Keep:
    """The decision of the recipe for one weight alone."""
    shape = tuple(next(iter(matrices.values())).shape)
    count = 0 if tied else sum(p.numel() for p in matrices.values())
    about = weight, type(module).__name__, shape, count
    rule = recipe.rule_for(weight.place, kinds)
    if "@router" in kinds and (rule is None or isinstance(use, str)):
        return Keep(*about, ROUTER)
    if isinstance(use, str):
        return Keep(*about, use)
    if rule is None:
        return Keep(*about, "no rule matches")
    if rule.scheme is None:
        return Keep(*about, f"recipe {recipe.name} keeps {rule.match}")
    misfit = _misfit(weight, use, rule)
    if misfit and recipe.strict:
        raise UsageError(f"{weight.place}: {misfit}")
    if misfit:
        return Keep(*about, misfit)
    return Quantize(*about, f"rule {rule.match}", use, rule.scheme, rule.activations)


def _misfit(weight: WeightName, use: Weights, rule: Rule) -> str | None:
    """Why the scheme of a rule cannot hold a weight, or None. Raises UsageError for experts with
    static activations."""
    assert rule.scheme is not None
    if use.kind != "experts":
        return rule.scheme.misfit(*use.shape)
    if rule.is_static:
        raise UsageError(
            f"{weight} holds experts, which do not support {rule.activations} activations:"
            ' give "@experts" a rule with activations dynamic or float'
        )
    if rule.scheme.parts:
        return f"scheme {rule.scheme.name} stores rows in several forms, experts have one"
    return rule.scheme.misfit(use.shape[0] // use.experts, use.shape[1])


def _follow_ties(
    decisions: Sequence[Quantize | Keep],
    ties: Mapping[WeightName, WeightName],
    uses: Mapping[WeightName, Weights | str],
) -> Iterator[Quantize | TiedTo | Keep]:
    """Modules that share a weight: all share one quantized weight, or all stay float."""
    by_weight = {d.weight: d for d in decisions}
    blocked = {
        ties[d.weight]: d for d in decisions if d.weight in ties and isinstance(uses[d.weight], str)
    }
    for d in decisions:
        about = d.weight, d.module, d.shape, d.parameters
        source, use = ties.get(d.weight), uses[d.weight]
        block = blocked.get(source or d.weight)
        if block is not None:
            reason = f"shares its weight with {block.name}: {block.reason}"
            yield Keep(*about, reason, source)
        elif source is None:
            yield d
        elif isinstance(owner := by_weight[source], Quantize) and isinstance(use, Weights):
            activations = d.activations if isinstance(d, Quantize) else "float"
            yield TiedTo(*about, f"tied to {owner.name}", use, owner, activations)
        else:
            yield Keep(*about, f"tied to {owner.name}", source)
