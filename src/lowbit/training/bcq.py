"""Plans for training towards binary codes: which weights in how many bits, and when what happens.

    steps      0 ……………………………………………………………………………… total
    phases     embedding | + decoder | + encoder | codes frozen
                                                 ^ total · (1 − frozen)

A weight that has begun is projected every `every` steps. Without phases all begin at once.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lowbit.conversion.recipe import PRESETS, Recipe, Rule, load_recipe
from lowbit.errors import UsageError, check_at_least, check_choice
from lowbit.qat.projection import PARTS
from lowbit.qat.stacked_codes import has_codes
from lowbit.schemes import Scheme, scheme_from_dict, with_options


@dataclass(frozen=True)
class BcqPlan:
    """every: steps between projections, 500 to 2,000 as a rule; 0 for once an epoch. straight: the
    codes are computed with between them too, with straight-through gradients; else the decoded
    weights train on in float. phases: the parts of the model begin one after the other. frozen:
    the share of all steps, at the end, in which codes stay and the rest trains on. score_before:
    the model is also scored before each projection at which it is scored.

    Raises UsageError for numbers that cannot be.
    """

    recipe: Recipe
    every: int = 500
    straight: bool = True
    phases: bool = False
    frozen: float = 0.2
    score_before: bool = False

    def __post_init__(self) -> None:
        check_at_least("steps between projections", self.every, 0)
        if not 0 <= self.frozen < 1:
            raise UsageError(f"a share of {self.frozen} frozen steps is outside 0 … 1")

    def freezes(self, total: int) -> int:
        """The step after which codes stay as they are; none of `total` where nothing is frozen."""
        return total - round(total * self.frozen) if self.frozen else total + 1

    def begins(self, part: str, total: int) -> int:
        """The step after which a part of the model is quantized."""
        if not self.phases:
            return 0
        return PARTS.index(part) * min(self.freezes(total), total) // len(PARTS)

    def to_dict(self) -> dict[str, Any]:
        """For people."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}


def everything(bits: Mapping[str, int], name: str, **options: Any) -> Recipe:
    """Bits by pattern, the first match counts."""
    binary = {"scheme": "binary", **options}
    rules = (Rule(match, scheme_from_dict(binary | {"bits": b})) for match, b in bits.items())
    return Recipe(tuple(rules), name)


def in_clusters(recipe: Recipe, scheme: Scheme) -> Recipe:
    """The same with embeddings in clusters by frequency."""
    others = (rule for rule in recipe.rules if rule.match != "@embedding")
    return replace(recipe, rules=(Rule("@embedding", scheme), *others))


# Chung et al. 2020, section 4: of the decoder's self-attention, cross-attention and feed-forward
# layers, then of the encoder's. Their embedding, 2.5 bits in clusters by frequency, has 3 here.
CHUNG_2020 = {
    "*.decoder.*.self_attn.*": 2,
    "*.decoder.*.encoder_attn.*": 3,
    "*.decoder.*.fc?": 1,
    "*.encoder.*.self_attn.*": 3,
    "*.encoder.*.fc?": 4,
    "@embedding": 3,
    "@linear": 3,
}
# Fewer than 2.6 bits with scales, norms, biases and positions counted, at a width of 192.
MIXED = CHUNG_2020 | {"*.encoder.*.self_attn.*": 2, "*.encoder.*.fc?": 2}
PER_ROW: dict[str, Any] = {"granularity": "channel", "offset": False}
CLUSTERED = scheme_from_dict({"scheme": "clustered", "bits": 4, **PER_ROW})

PLANS = {
    **{str(bits): BcqPlan(PRESETS[f"bcq{bits}-all"]) for bits in (1, 2, 3, 4)},
    # The control arm: greedy codes of everything, per row, at the end of each epoch.
    "bcq-reference": BcqPlan(
        everything({"@embedding": 3, "@linear": 3}, "bcq-reference", solver="greedy", **PER_ROW),
        every=0,
        straight=False,
        frozen=0.0,
        score_before=True,
    ),
    "chung-2020": BcqPlan(everything(CHUNG_2020, "chung-2020", **PER_ROW)),
    "bcq-mixed": BcqPlan(everything(MIXED, "bcq-mixed", **PER_ROW)),
    "bcq-clustered": BcqPlan(in_clusters(everything(MIXED, "bcq-clustered", **PER_ROW), CLUSTERED)),
}


def find_plan(name: str, options: Mapping[str, Any]) -> BcqPlan:
    """A plan by name, or that of a recipe; `options` that are not None take the place of its own,
    those of a scheme in all its rules. Raises UsageError."""
    plan = PLANS.get(name)
    if plan is None:
        if not name.endswith((".yaml", ".yml")):
            others = f"{', '.join(PLANS)}, or a recipe of binary codes"
            check_choice("plan", name, (*PLANS, *PRESETS), others)
        plan = BcqPlan(load_recipe(name))
    given = {key: value for key, value in options.items() if value is not None}
    of_plan = {key: given.pop(key) for key in list(given) if hasattr(plan, key)}
    return replace(plan, recipe=_changed(plan.recipe, given), **of_plan)


def _changed(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    rules = []
    for rule in recipe.rules:
        scheme = rule.scheme
        if scheme is not None and not has_codes(scheme):
            raise UsageError(f"rule {rule.match!r} of recipe {recipe.name} is not of binary codes")
        changed = None if scheme is None else with_options(scheme, options)
        rules.append(replace(rule, scheme=changed))
    return replace(recipe, rules=tuple(rules))
