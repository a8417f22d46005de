"""What the command line makes of inputs that people try: float folders, other projects' folders."""

import json

import pytest
import torch

from lowbit import quantize_checkpoint
from lowbit.checkpoint.load import load_model
from lowbit.conversion.recipe import PRESETS, recipe_of
from lowbit.inspect.forecast import float_skeleton, forecast
from tests.combinations import some
from tests.folders import save
from tests.models import make


@pytest.fixture
def source(tmp_path):
    return save("gpt2", tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("name", "recipe"),
    some(["gpt2", "bert", "t5"], ["int8-all", "int4-head8-dynamic", "bcq3", "int2-all"]),
)
def test_a_forecast_is_the_size_that_quantizing_gives(name, recipe, tmp_path):
    make(name).save_pretrained(tmp_path / "float")
    found = forecast(*float_skeleton(tmp_path / "float"), PRESETS[recipe])
    made = quantize_checkpoint(str(tmp_path / "float"), recipe, tmp_path / "out", progress=False)
    assert found.stored_bytes == made.after.stored_bytes
    assert found.plan.share == made.plan.share


def test_inspect_of_a_float_folder_says_what_each_recipe_would_make(lowbit, source):
    code, out, _ = lowbit("inspect", source)
    assert code == 0 and "is a float model: GPT2LMHeadModel" in out
    assert "int4-head8-dynamic" in out and "bcq1-all" in out
    told = json.loads(lowbit("inspect", source, "--json")[1])
    sizes = [each["stored_bytes"] for each in told["recipes"]]
    assert len(sizes) == 9 and all(size < told["stored_bytes"] for size in sizes)


def test_a_dry_run_writes_nothing(lowbit, source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = lowbit("quantize", source, "--dry-run")
    assert code == 0 and "int4-head8-dynamic" in out and "nothing was written" in out, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "name", "bits"),
    [
        (("--bits", "4"), "int4-head8-dynamic", 4),
        (("--bits", "5", "--group", "32"), "int5-group32-head8-dynamic", 5),
    ],
)
def test_bits_and_group_are_a_recipe(lowbit, source, tmp_path, given, name, bits):
    code, out, err = lowbit("quantize", source, *given, "-o", tmp_path / "out", "--json")
    recipe = json.loads(out)["recipe"]
    assert code == 0 and recipe["name"] == name, err
    assert recipe["rules"][-1]["bits"] == bits and recipe["rules"][0]["bits"] == 8


def test_the_short_way_takes_every_number_of_bits():
    assert recipe_of(4) == PRESETS["int4-head8-dynamic"]
    assert recipe_of(4, 128).rules[-1].scheme.granularity.group_size == 128
    assert [recipe_of(bits).rules[-1].scheme.bits for bits in range(2, 9)] == list(range(2, 9))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("int4", "-o", "out"), "write --recipe int4"),
        (("mine.yaml", "-o", "out"), "write --recipe mine.yaml"),
        (("--group", "32", "-o", "out"), "--group needs --bits"),
        (("--bits", "4", "--recipe", "int4", "-o", "out"), "--recipe or --bits"),
    ],
)
def test_a_recipe_that_is_not_one_is_told_how_to_be_written(lowbit, source, given, sentence):
    code, _, err = lowbit("quantize", source, *given)
    assert code == 2 and sentence in err


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("adapter_config.json", "{}", "an adapter of PEFT; merge it"),
        ("model_index.json", "{}", "a pipeline of diffusers"),
        ("config.json", '{"architecture": "vit", "pretrained_cfg": {}}', "a model of timm"),
    ],
)
def test_folders_of_other_projects_are_named(lowbit, tmp_path, file, text, sentence):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / file).write_text(text)
    for verb in (
        ("quantize", tmp_path / "theirs", "-o", tmp_path / "out"),
        ("inspect", tmp_path / "theirs"),
    ):
        code, _, err = lowbit(*verb)
        assert code == 1 and sentence in " ".join(err.split()), err


def test_eval_prints_the_text_that_is_generated(lowbit, source):
    given = ("eval", source, "--task", "generate", "--text", "who came", "--new-tokens", 6)
    code, out, err = lowbit(*given, "--top-k", 1)
    assert code == 0 and "gpt2: who came → who came" in out, err
    text = out[out.index("who came →") :]
    assert text in lowbit(*given, "--top-k", 1)[1]
    assert text not in lowbit(*given, "--top-k", 50)[1]


def test_simulate_writes_a_float_model_of_rounded_weights(lowbit, source, tmp_path):
    code, _, err = lowbit("simulate", source, "--scheme", "absmax", "-o", tmp_path / "out")
    assert code == 0, err
    before, after = load_model(source), load_model(tmp_path / "out")
    name = "transformer.h.0.mlp.c_fc.weight"
    old, new = before.get_parameter(name), after.get_parameter(name)
    step = old.abs().max() / 127
    assert ((old - new).abs() <= step * 0.51).all() and not torch.equal(old, new)
    assert new.unique().numel() <= 255
