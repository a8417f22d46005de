"""What one call does once: it loads the recipe, makes the plan and makes the batches."""

import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.calibration import batches_of
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from tests.models import make
from tests.small_tokenizers import words

IDS = torch.arange(0, 160).reshape(8, 20) * 7 % 199
PLAIN = {"name": "gptq", "rounds": 0}


@pytest.fixture
def calls(monkeypatch):
    """How often each of these functions is called, from wherever in lowbit."""
    counted = Counter()

    def counting(function):
        def wrapped(*args, **kwargs):
            counted[function.__name__] += 1
            return function(*args, **kwargs)

        return wrapped

    for function in (load_recipe, make_plan, batches_of):
        replacement = counting(function)
        for name, module in list(sys.modules.items()):
            if name.startswith("lowbit") and vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, replacement)
    return counted


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "float"
    make("gpt2").save_pretrained(folder)
    words(*(f"w{i}" for i in range(150))).save_pretrained(folder)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i * 7 % 150}" for i in range(400)))
    return folder


@pytest.mark.parametrize(
    ("recipe", "solver"), [("int4-static", PLAIN), ("int8-static", "nearest"), ("int4", PLAIN)]
)
def test_a_calibrated_call_plans_loads_and_batches_once(recipe, solver, calls):
    lowbit.quantize(make("gpt2"), recipe, False, IDS, solver=solver)
    assert calls == {"load_recipe": 1, "make_plan": 1, "batches_of": 1}


def test_a_call_without_data_plans_and_loads_once(calls):
    lowbit.quantize(make("gpt2"), "int4", progress=False)
    assert calls == {"load_recipe": 1, "make_plan": 1}


def test_a_streaming_call_plans_and_loads_once(calls, source, tmp_path):
    lowbit.quantize_checkpoint(str(source), "int4", tmp_path / "out", progress=False)
    assert calls == {"load_recipe": 1, "make_plan": 1}


def test_a_calibrated_checkpoint_is_that_of_the_same_call_in_memory(calls, source, tmp_path):
    result = lowbit.quantize_calibrated(
        str(source), "int4-static", tmp_path / "out", tmp_path / "text.txt",
        solver=PLAIN, samples=8, length=20, progress=False,
        options=lowbit.QatOptions(ranges="minmax"),
    )  # fmt: skip
    assert calls == {"load_recipe": 1, "make_plan": 1, "batches_of": 1}
    ids = torch.tensor([4 + i * 7 % 150 for i in range(-1, 399)])
    ids[0] = 2  # [CLS], then words
    windows = ids.reshape(20, 20)[[0, 2, 5, 7, 10, 12, 15, 17]]
    model = make("gpt2")
    options = lowbit.QatOptions(ranges="minmax")
    expected = lowbit.quantize(model, "int4-static", False, windows, options=options, solver=PLAIN)
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert result.errors == expected.errors
    assert result.plan.to_dict() == expected.plan.to_dict()
    found, wanted = loaded.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_float_parameter_that_could_not_be_loaded_again_is_told_before_the_work(source, tmp_path):
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.bias"][0] = -torch.inf
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match="transformer.ln_f.bias holds -inf"):
        lowbit.quantize_calibrated(
            str(source), "int8-static", tmp_path / "out", tmp_path / "text.txt", progress=False
        )
    assert not (tmp_path / "out").exists()


TEXT = (
    "calibration takes no text or file .*: give token ids .*lowbit.quantize_calibrated reads text"
)
OTHER = "calibration takes token ids .*, or a list of mappings"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"recipe": "int4", "solver": "gptq", "calibration": "text.txt"}, TEXT),
        ({"recipe": "int4", "solver": "gptq", "calibration": ["the cat"]}, TEXT),
        ({"recipe": "int4", "solver": "gptq", "calibration": {"input_ids": IDS}}, OTHER),
        ({"recipe": "int4", "solver": "gptq", "calibration": 8}, f"{OTHER}.*, not int"),
        ({"recipe": "int4", "solver": "gptq", "calibration": [IDS]}, f"{OTHER}.*, not Tensor"),
        (
            {"recipe": "int4", "solver": "gptq", "calibration": [{"input_ids": [[5, 6]]}]},
            f"{OTHER}.*, not list as input_ids",
        ),
        ({"recipe": 4}, 'a recipe is the name of a preset, .*, not 4: "int4" quantizes'),
        ({"solver": 4}, "a solver is a name or a mapping with the key name, not 4"),
    ],
)
def test_arguments_of_another_kind_are_one_sentence(arguments, sentence):
    with pytest.raises(lowbit.UsageError, match=sentence):
        lowbit.quantize(make("gpt2"), **arguments, progress=False)


def test_a_config_without_a_recipe_is_one_sentence():
    with pytest.raises(lowbit.UsageError, match='needs a recipe, such as "int4-head8-dynamic"'):
        lowbit.LowbitConfig()
