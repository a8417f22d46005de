"""`lowbit search` as its user sees it."""

import json
import shlex

import pytest

from lowbit.conversion.recipe import load_recipe
from lowbit.evaluation.study import Study
from tests.folders import save

TEXT = "a text that is long enough to predict, and then a little longer than that. " * 6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = save("gpt2", tmp_path_factory.mktemp("models") / "tiny")
    (folder.parent / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def arguments(source):
    text = source.parent / "text.txt"
    return ("search", source, "--task", "perplexity", "--data", text, "--calibration", text,
            "--samples", "2", "--schemes", "int2,int8")  # fmt: skip


def test_the_recipe_is_written_said_and_taken_by_quantize(lowbit, arguments, source, tmp_path):
    recipe, out_folder = tmp_path / "recipe.yaml", tmp_path / "out"
    code, out, err = lowbit(*arguments, "--max-bits", "5", "-o", recipe)
    assert code == 0, err
    for words in ("transformer.h.0.mlp.c_fc", "cost", "→", "divergence", "worse by", str(recipe)):
        assert words in out, words
    assert f"lowbit quantize {source} --recipe {recipe} -o OUT" in out
    code, out, err = lowbit("quantize", source, "--recipe", recipe, "-o", out_folder, "--json")
    assert code == 0, err
    assert json.loads(out)["after"]["bits_per_weight"] <= 5
    assert {rule.scheme.bits for rule in load_recipe(recipe).rules if rule.scheme} == {2, 8}


@pytest.mark.slow
def test_the_command_that_is_told_makes_the_model_that_was_evaluated(
    lowbit, arguments, source, tmp_path
):
    recipe = tmp_path / "a recipe.yaml"
    given = (*arguments, "--max-bits", "5", "--solver", "gptq", "-o", recipe)
    code, out, err = lowbit(*given)
    assert code == 0, err
    command = shlex.split(out[out.index("lowbit quantize") :])[1:-1]
    assert lowbit(*command, tmp_path / "out")[0] == 0
    code, told, err = lowbit(*given[:-1], tmp_path / "b.yaml", "--json")
    found = json.loads(told)
    text = source.parent / "text.txt"
    code, out, err = lowbit(
        "eval", tmp_path / "out", "--task", "perplexity", "--data", text, "--json"
    )
    assert code == 0, err
    value = found["trials"][found["best"]]["value"]
    assert Study.from_dict(json.loads(out)).models[0].measurements[0].metrics[
        "perplexity"
    ].value == pytest.approx(value, rel=1e-5)


def test_json_is_one_object_and_quiet_is_nothing(lowbit, arguments, tmp_path):
    given = (*arguments, "--max-size", "700kB", "--sensitivity", "hessian", "--keep", "*.c_fc")
    code, out, err = lowbit(*given, "-o", tmp_path / "a.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    best = found["trials"][found["best"]]
    assert best["stored_bytes"] <= 700_000 and found["metric"] == "perplexity"
    assert sum(choice["stored_bytes"] for choice in best["choices"]) < best["stored_bytes"]
    assert not any(choice["match"].endswith("c_fc") for choice in best["choices"])
    assert lowbit(*given, "-o", tmp_path / "b.yaml", "--quiet") == (0, "", "")
    assert (tmp_path / "a.yaml").read_text() == (tmp_path / "b.yaml").read_text()


def test_a_recipe_that_exists_is_replaced_only_on_request(lowbit, arguments, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mine")
    given = (*arguments, "--max-bits", "5", "--sensitivity", "hessian", "-o", recipe)
    code, _, err = lowbit(*given)
    assert code == 2 and "recipe.yaml exists (--overwrite replaces it)" in err
    assert recipe.read_text() == "mine"
    assert lowbit(*given, "--overwrite", "--quiet") == (0, "", "")
    assert load_recipe(recipe).rules


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--max-bits", "1"], 1, "the smallest possible here is"),
        (["--max-size", "1GB"], 2, "the float model takes"),
        ([], 2, "one budget"),
        (["--max-bits", "4", "--max-drop", "1%"], 2, "one budget"),
        (["--max-size", "20"], 2, "not a number with a unit"),
        (["--max-bits", "4", "--schemes", "int9"], 2, "'int9' is unknown"),
        (["--max-bits", "4", "--sensitivity", "luck"], 2, "'luck' is unknown"),
        (["--max-bits", "4", "--shapes", "1x8"], 2, "a search times nothing"),
        (["--max-bits", "4", "--solver", "luck"], 2, "'luck' is unknown"),
        (["--max-bits", "4", "--keep", "*.nothing"], 2, "matches no module"),
        (["--max-bits", "4", "--calibration", "nowhere.txt"], 1, "nowhere.txt"),
    ],
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(
    lowbit, arguments, tmp_path, more, code, sentence
):
    recipe = tmp_path / "recipe.yaml"
    got, out, err = lowbit(*arguments, *more, "-o", recipe)
    assert got == code and sentence in err and "Traceback" not in err, err
    assert not recipe.exists()


def test_the_recipe_is_a_yaml_file(lowbit, arguments, tmp_path):
    code, _, err = lowbit(*arguments, "--max-bits", "5", "-o", tmp_path / "recipe.json")
    assert code == 2 and "a .yaml file" in err


def test_a_folder_that_is_not_there_is_told_before_the_search(lowbit, arguments, tmp_path):
    verb, _, *options = arguments
    # No model either, which would be told next.
    given = (verb, tmp_path, *options, "--max-bits", "5")
    code, _, err = lowbit(*given, "-o", tmp_path / "absent" / "r.yaml")
    assert code == 2 and "r.yaml has no folder to go into" in err
