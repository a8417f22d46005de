"""Recipes: presets, patterns, YAML, and what is refused."""

import pytest
import yaml

from lowbit import KEEP, PRESETS, Absmax, Binary, Recipe, Rule, UsageError, ZeroPoint
from lowbit.conversion.recipe import load_recipe
from lowbit.formats import CHANNEL, group

LINEAR = frozenset(["@linear"])
HEAD = frozenset(["@linear", "@head"])
EMBEDDING = frozenset(["@embedding"])


def scheme(recipe, kinds):
    rule = load_recipe(recipe).rule_for("some.module", kinds)
    return rule and rule.scheme


@pytest.mark.parametrize(
    ("preset", "linear", "table"),
    [
        ("int8", Absmax(8, CHANNEL), KEEP),
        ("int8-all", Absmax(8, CHANNEL), Absmax(8, CHANNEL)),
        ("int8-zeropoint", ZeroPoint(8, CHANNEL), KEEP),
        ("int4", ZeroPoint(4, group(64)), KEEP),
        ("int3-all", ZeroPoint(3, group(64)), ZeroPoint(3, group(64))),
        ("int2", ZeroPoint(2, group(64)), KEEP),
        ("bcq1", Binary(1, group(64)), KEEP),
        ("bcq4-all", Binary(4, group(64)), Binary(4, group(64))),
    ],
)
@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_presets_are_those_of_the_documentation(preset, linear, table, activations):
    name = preset + "-dynamic" * (activations == "dynamic")
    recipe = load_recipe(name)
    assert recipe.name == name and not recipe.strict
    assert scheme(name, LINEAR) == linear
    assert scheme(name, EMBEDDING) == scheme(name, HEAD) == table
    assert recipe.rule_for("x", LINEAR).activations == activations


def test_binary_presets_have_an_offset_and_alternate():
    rule = load_recipe("bcq3").rule_for("x", LINEAR)
    assert rule.scheme.offset and rule.scheme.solver == "alternating"


@pytest.mark.parametrize("name", ["int4-head8-dynamic", "bcq3-head8", "int2-head8-static"])
def test_head8_gives_tables_and_heads_8_bits_and_heads_float_activations(name):
    base, _, activations = name.partition("-head8")
    assert scheme(name, LINEAR) == scheme(base, LINEAR)
    assert scheme(name, EMBEDDING) == scheme(name, HEAD) == Absmax(8, CHANNEL)
    recipe = load_recipe(name)
    assert recipe.rule_for("x", HEAD).activations == "float"
    assert recipe.rule_for("x", LINEAR).activations == (activations[1:] or "float")


def test_there_are_twelve_variants_of_each_of_twelve_schemes():
    assert len([name for name in PRESETS if "-experts" not in name]) == 12 * 12


def test_mixtures_have_variants_with_fewer_bits_for_experts():
    names = [name for name in PRESETS if "-experts" in name]
    assert "int4-head8-experts3-dynamic" in names and "int3-experts4" not in names
    for name in names:
        experts = PRESETS[name].rule_for("x", frozenset({"@experts", "@linear"}))
        layers = PRESETS[name].rule_for("x", LINEAR)
        assert experts.scheme.bits < layers.scheme.bits
        assert experts.activations == layers.activations


def test_the_first_rule_that_matches_decides():
    recipe = Recipe((Rule("*.key", KEEP), Rule("*.k*", Absmax(4)), Rule("@linear", Absmax(8))))
    assert recipe.rule_for("a.key", LINEAR).scheme is None
    assert recipe.rule_for("a.kind", LINEAR).scheme == Absmax(4)
    assert recipe.rule_for("a.b", LINEAR).scheme == Absmax(8)
    assert recipe.rule_for("a.b", EMBEDDING) is None


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_yaml(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(PRESETS[name].to_yaml())
    assert load_recipe(file) == load_recipe(str(file)) == PRESETS[name]


def test_yaml_says_the_same_as_python(tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_text(
        """
        name: mine
        rules:
          - {match: "@head", keep: true}
          - {match: "*.query", scheme: binary, bits: 2, granularity: channel, solver: greedy}
          - {match: "@linear", scheme: absmax, bits: 8, activations: dynamic}
        """
    )
    assert load_recipe(file) == Recipe(
        (
            Rule("@head", KEEP),
            Rule("*.query", Binary(2, CHANNEL, solver="greedy")),
            Rule("@linear", Absmax(8), "dynamic"),
        ),
        name="mine",
    )


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("int5", "'int5' is unknown"),
        ("int8-al", "'int8-al' is unknown; did you mean int8-all"),
        ("int8-all-dynamic-all", "unknown"),
        ("int8-static-all", "unknown"),
        ("missing.yaml", "cannot be read"),
        ({"rules": []}, "at least one"),
        ({"rule": []}, "'rule'"),
        ({"rules": [{"match": "@linear"}]}, "scheme None"),
        ({"rules": [{"scheme": "absmax"}]}, "needs the key match"),
        ({"rules": ["@linear"]}, "mapping"),
        ({"rules": [{"match": "@linears", "keep": True}]}, "'@linears'"),
        ({"rules": [{"match": "a", "keep": True, "bits": 4}]}, "bits"),
        ({"rules": [{"match": "a", "scheme": "absmin"}]}, "'absmin'"),
        ({"rules": [{"match": "a", "scheme": "absmax", "bit": 4}]}, "'bit'"),
        ({"rules": [{"match": "a", "scheme": "absmax", "bits": "4"}]}, "takes int"),
        ({"rules": [{"match": "a", "scheme": "absmax", "bits": 9}]}, "bits 9"),
        ({"rules": [{"match": "a", "scheme": "absmax", "bits": 1}]}, "bits 1"),
        ({"rules": [{"match": "a", "scheme": "binary", "bits": 5}]}, "bits 5"),
        ({"rules": [{"match": "a", "scheme": "absmax", "granularity": "group"}]}, "size"),
        ({"rules": [{"match": "a", "scheme": "absmax", "granularity": "group:0"}]}, "size 0"),
        ({"rules": [{"match": "a", "scheme": "absmax", "granularity": "row"}]}, "'row'"),
        ({"rules": [{"match": "a", "scheme": "absmax", "activations": "int4"}]}, "'int4'"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(recipe, sentence):
    with pytest.raises(UsageError, match=sentence) as raised:
        load_recipe(recipe)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{", "- a", "3", "", "!!python/object:os.system {}", "\x00"])
def test_a_file_that_is_no_recipe_is_one_sentence(text, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as raised:
        load_recipe(file)
    assert str(raised.value).startswith(f"recipe {file}") and "\n" not in str(raised.value)


def test_recipes_are_plain_yaml():
    assert yaml.safe_load(PRESETS["bcq3-all"].to_yaml())["rules"][0]["scheme"] == "binary"
