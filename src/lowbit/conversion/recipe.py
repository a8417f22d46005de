"""Recipes: ordered patterns -> a scheme, or KEEP. The first pattern that matches a module decides.

A pattern is a shell glob over the module's full name ("*.attention.*.query"; "*" also matches
dots), or a kind:

    @linear     Linear and Conv1D
    @embedding  embeddings
    @head       output embeddings and linear layers outside the base model; also "@linear"
    @experts    the weights of all experts of a mixture in one projection; also "@linear"
    @router     the layer that chooses experts; it has no other kind

A recipe as YAML:

    name: mine
    rules:
      - {match: "@head", keep: true}
      - {match: "*.attention.*", scheme: absmax, bits: 8, activations: dynamic}
      - {match: "@linear", scheme: zero-point, bits: 4, granularity: "group:64"}
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Self

import yaml

from lowbit.checkpoint.documents import read_yaml
from lowbit.errors import InputError, UsageError, check_choice, naming
from lowbit.formats import group
from lowbit.nn import ACTIVATIONS, STATIC
from lowbit.schemes import Scheme, ZeroPoint, scheme_from_dict, scheme_to_dict
from lowbit.schemes.named import NAMED

KINDS = ("@linear", "@embedding", "@head", "@experts", "@router")
KEEP: Final = None


@dataclass(frozen=True)
class Rule:
    """One line of a recipe: a pattern, a scheme, and how activations are computed.

    Attributes:
        match: A shell glob over the module's full name, or a kind: "@linear", "@embedding",
            "@head", "@experts", "@router".
        scheme: How to quantize the weight; `KEEP` (None) leaves it in float.
        activations: "float", or int8: "dynamic" (one scale per token, computed at run time),
            "static" (one scale per layer, from calibration data), "requantized" (static, with int8
            outputs).

    Raises:
        UsageError: if the kind or the activations are unknown.
    """

    match: str
    scheme: Scheme | None = KEEP
    activations: str = "float"

    def __post_init__(self) -> None:
        if self.match.startswith("@"):
            check_choice("kind", self.match, KINDS)
        check_choice("activations", self.activations, ACTIVATIONS)

    @property
    def is_static(self) -> bool:
        """Whether activation scales come from calibration data."""
        return self.activations in STATIC

    def matches(self, name: str, kinds: frozenset[str]) -> bool:
        """Whether this rule applies to a module with this name and these kinds."""
        return self.match in kinds if self.match in KINDS else fnmatchcase(name, self.match)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        if not isinstance(stored, Mapping):
            raise UsageError(f"a rule is a mapping with the key match, not {stored!r}")
        options = dict(stored)
        match = options.pop("match", None)
        if not isinstance(match, str):
            raise UsageError(f"a rule needs the key match with a pattern: {dict(stored)}")
        if options.pop("keep", False):
            if options:
                raise UsageError(
                    f"rule {match!r} keeps the module, so it cannot have {', '.join(options)}"
                )
            return cls(match)
        activations = options.pop("activations", "float")
        if not isinstance(activations, str):
            raise UsageError(f"rule {match!r}: activations are a text, not {activations!r}")
        return cls(match, scheme_from_dict(options), activations)

    def to_dict(self) -> dict[str, Any]:
        if self.scheme is None:
            return {"match": self.match, "keep": True}
        return {
            "match": self.match,
            **scheme_to_dict(self.scheme),
            "activations": self.activations,
        }


@dataclass(frozen=True)
class Recipe:
    """Ordered rules. The first rule that matches a module decides.

    Attributes:
        rules: The rules, in order.
        name: The name of the recipe in tables and folders.
        strict: Raise UsageError if a scheme cannot hold a module's weight. If false, that module
            stays in float.
    """

    rules: tuple[Rule, ...]
    name: str = "custom"
    strict: bool = True

    def rule_for(self, name: str, kinds: frozenset[str]) -> Rule | None:
        """The first rule that matches, or None."""
        return next((rule for rule in self.rules if rule.matches(name, kinds)), None)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Raises UsageError if a key, scheme, option or kind is unknown."""
        if not isinstance(stored, Mapping):
            raise UsageError("a recipe is a mapping with the keys name and rules")
        unknown = stored.keys() - {"name", "rules", "strict"}
        if unknown:
            raise UsageError(
                f"a recipe has no key {', '.join(sorted(map(repr, unknown)))}:"
                " use name, rules and strict"
            )
        rules = stored.get("rules")
        if not isinstance(rules, list) or not rules:
            raise UsageError("a recipe needs the key rules with a list of at least one rule")
        return cls(
            tuple(Rule.from_dict(rule) for rule in rules),
            name=str(stored.get("name", "custom")),
            strict=bool(stored.get("strict", True)),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "strict": self.strict,
            "rules": [rule.to_dict() for rule in self.rules],
        }

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a recipe. Raises UsageError if the file is absent, not YAML, or not a recipe."""
        try:
            stored = read_yaml(Path(path))
        except InputError as error:
            raise UsageError(f"recipe {error}") from error
        with naming(f"recipe {path}"):
            return cls.from_dict(stored)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


# The rules of a preset for embeddings and heads, by the suffix of its name. 8-bit heads have float
# activations, so that outliers of the last hidden state do not cost the logits precision.
_TABLES: dict[str, Callable[[Scheme], tuple[Rule, ...]]] = {
    "": lambda scheme: (Rule("@embedding", KEEP), Rule("@head", KEEP)),
    "-head8": lambda scheme: (Rule("@embedding", NAMED["int8"]), Rule("@head", NAMED["int8"])),
    "-all": lambda scheme: (Rule("@embedding", scheme),),
}
_ACTIVATIONS = {"" if kind == "float" else f"-{kind}": kind for kind in ACTIVATIONS}
PRESETS: dict[str, Recipe] = {
    name: Recipe((*rules(scheme), Rule("@linear", scheme, activations)), name, strict=False)
    for base, scheme in NAMED.items()
    for table, rules in _TABLES.items()
    for suffix, activations in _ACTIVATIONS.items()
    for name in [base + table + suffix]
}
# Mixtures of experts: routed experts hold nearly all parameters and get fewer bits. Attention and
# shared experts, which every token reads, keep more.
_OF_EXPERTS = {f"-experts{bits}": NAMED[f"int{bits}"] for bits in (4, 3, 2)}
PRESETS |= {
    name: Recipe(
        (
            *rules(scheme),
            Rule("@experts", of_experts, activations),
            Rule("@linear", scheme, activations),
        ),
        name,
        strict=False,
    )
    for base, scheme in NAMED.items()
    for table, rules in _TABLES.items()
    for experts, of_experts in _OF_EXPERTS.items()
    if of_experts.bits < scheme.bits
    for suffix, activations in _ACTIVATIONS.items()
    if activations not in STATIC
    for name in [base + table + experts + suffix]
}


def recipe_of(bits: int, group_size: int | None = None) -> Recipe:
    """The short way to a recipe: linear layers in `bits` bits, and int8 activations.

    Embeddings and the output head have 8 bits, as in the presets with -head8.

    Args:
        bits: Bits per weight, 2 … 8.
        group_size: Inputs that share a scale. None: the group size of the preset.

    Raises:
        UsageError: if `bits` or `group_size` is out of range.
    """
    known = NAMED.get(f"int{bits}")
    if group_size is None and known is not None:
        return PRESETS[f"int{bits}-head8-dynamic"]
    width = 64 if group_size is None else group_size
    scheme = ZeroPoint(bits, group(width))
    rules = (*_TABLES["-head8"](scheme), Rule("@linear", scheme, "dynamic"))
    return Recipe(rules, f"int{bits}-group{width}-head8-dynamic", strict=False)


def names_a_folder(name: str) -> bool:
    """Whether `name` can be the name of a folder."""
    return name not in ("", ".", "..") and Path(name).name == name


def load_recipe(recipe: str | Path | Recipe | Mapping[str, Any]) -> Recipe:
    """The recipe of a preset's name, a YAML path or a mapping. Raises UsageError."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_dict(recipe)
    if not isinstance(recipe, str | Path):
        raise UsageError(
            "a recipe is the name of a preset, the path of a .yaml file, a mapping or a"
            f' lowbit.Recipe, not {recipe!r}: "int4" quantizes linear layers to 4 bits'
        )
    if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
        return Recipe.from_yaml(recipe)
    others = (
        f"{', '.join(NAMED)}, each with -all or -head8, for mixtures with -experts4, -experts3 or"
        " -experts2 (fewer bits than the rest), with -dynamic, -static or -requantized, or with one"
        " of both, or the path of a .yaml file"
    )
    check_choice("recipe", recipe, PRESETS, others)
    return PRESETS[recipe]


def schemes_of(presets: Iterable[str]) -> tuple[Scheme, ...]:
    """The schemes of presets without suffixes, without duplicates. Raises UsageError."""
    names = [preset.strip() for preset in presets]
    for name in names:
        check_choice("scheme", name, NAMED)
    return tuple(NAMED[name] for name in dict.fromkeys(names))
