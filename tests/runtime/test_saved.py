"""Programs that another process saved: the same bits, and nothing of another model."""

import copy
import json
import shutil
import sys
from collections import defaultdict
from typing import NamedTuple

import pytest
import torch
from transformers import BertModel

import lowbit
from lowbit.errors import InputError, UsageError
from lowbit.fallbacks import SlowPathWarning, noted
from lowbit.kernels import native
from lowbit.runtime import programs as runtime_programs
from lowbit.runtime.compiled import Compiled
from lowbit.runtime.saved import FILE
from tests.runtime.test_compiled import MODELS, aside, batch, called, made, programs

# A module of Python that nothing imports.
MODULE = "this"

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason())


def again(model):
    """The same model, as another process has it."""
    fresh = copy.deepcopy(model)
    fresh.__dict__.pop("forward", None)
    return fresh


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A compiled model, and the folder of its programs."""
    folder = tmp_path_factory.mktemp("programs")
    model = lowbit.compile(made("bert"))
    called(model, batch(9, 4))
    assert lowbit.save_programs(model, folder) == folder / FILE
    return model, folder


@pytest.fixture
def saved(kept, tmp_path):
    """The model; its programs are in `tmp_path` too."""
    model, folder = kept
    shutil.copy(folder / FILE, tmp_path)
    return model


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("bert", "int8-all-dynamic"),
        ("mpnet", "int8-all-dynamic"),
        ("gated t5", None),
        *(
            pytest.param(name, "int8-all-dynamic", marks=pytest.mark.nightly)
            for name in MODELS
            if name not in ("bert", "mpnet")
        ),
    ],
)
def test_a_saved_program_gives_the_same_bits_without_a_capture(name, recipe, tmp_path, monkeypatch):
    model = lowbit.compile(made(name, recipe))
    inputs = batch(30, 4, 1, 17)
    wanted = called(model, inputs)
    lowbit.save_programs(model, tmp_path)
    fresh = lowbit.compile(again(model), programs=tmp_path)
    monkeypatch.setattr(runtime_programs, "capture", lambda *_: pytest.fail("it was captured"))
    got = called(fresh, inputs)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert [type(p) for p in programs(fresh)] == [Compiled]


def test_programs_of_several_signatures_are_made_once(saved, tmp_path, monkeypatch):
    inputs = [batch(9, 4), {"input_ids": batch(6, 6)["input_ids"]}]
    called(saved, inputs[1])
    lowbit.save_programs(saved, tmp_path)
    fresh = lowbit.compile(again(saved), programs=tmp_path)
    made, lower = [], runtime_programs.lower
    monkeypatch.setattr(runtime_programs, "lower", lambda *given: made.append(1) or lower(*given))
    for _ in range(3):
        for each in inputs:
            called(fresh, each)
    assert len(made) == 2


def test_other_arguments_are_captured_as_ever(saved, tmp_path):
    fresh = lowbit.compile(again(saved), programs=tmp_path)
    ids = {"input_ids": batch(6, 6)["input_ids"]}
    assert torch.equal(called(fresh, ids)[0], called(saved, ids)[0])


def test_what_changes_before_the_first_call_counts(saved, tmp_path):
    fresh, inputs = lowbit.compile(again(saved), programs=tmp_path), batch(9, 4)
    norm = fresh.encoder.layer[1].output.LayerNorm
    norm.weight = torch.nn.Parameter(norm.weight.detach() * 2)
    got = called(fresh, inputs)[0]
    del fresh.__dict__["forward"]
    there, wanted = inputs["attention_mask"].bool(), aside(fresh, inputs)[0]
    assert (got - wanted)[there].norm() <= 2e-3 * wanted[there].norm()


def test_programs_of_other_weights_are_not_used(saved, tmp_path):
    fresh = again(saved)
    with torch.no_grad():
        fresh.encoder.layer[0].output.LayerNorm.bias.add_(1)
    wanted = aside(fresh, batch(9, 4))
    with pytest.warns(SlowPathWarning, match="other weights"):
        lowbit.compile(fresh, programs=tmp_path)
    got = called(fresh, batch(9, 4))
    there = batch(9, 4)["attention_mask"].bool()
    assert (got[0] - wanted[0])[there].norm() <= 2e-3 * wanted[0][there].norm()


def changed(tmp_path, change):
    stored = json.loads((tmp_path / FILE).read_text())
    change(stored)
    (tmp_path / FILE).write_text(json.dumps(stored))


def test_programs_of_other_versions_are_not_used(saved, tmp_path):
    changed(tmp_path, lambda s: s["models"][""]["made_with"].update(torch="2.0.0"))
    fresh = again(saved)
    with pytest.warns(SlowPathWarning, match="torch 2.0.0, not 2"):
        lowbit.compile(fresh, programs=tmp_path)
    assert fresh.forward.programs.saved == {} and noted(fresh)


def first_call(stored):
    return next(n for n in stored["models"][""]["programs"][0]["nodes"] if "calls" in n)


def returns(type, context, *children):
    """A change of what a program returns, as torch writes it."""
    structure = {"type": type, "context": context, "children_spec": children or [LEAF, LEAF]}
    return lambda s: s["models"][""]["programs"][0].update(structure=json.dumps([1, structure]))


LEAF = {"type": None, "context": None, "children_spec": []}
FACTORY = {
    "default_factory_module": MODULE,
    "default_factory_name": "s",
    "dict_context": ["a", "b"],
}
ENUM = json.dumps([{"__enum__": True, "fqn": f"{MODULE}:s", "name": "s"}, "b"])
CODE = f"x=__import__({MODULE!r})"
ONE = {"dtype": "int64", "shape": [1], "numbers": [1]}
DAMAGE = {
    "code for an argument": lambda s: s["models"][""]["programs"][0]["nodes"].append(
        {"name": CODE, "argument": "input_ids"}
    ),
    "code for a constant": lambda s: s["models"][""]["programs"][0]["constants"].update(
        {f'a"), {CODE[2:]}, ("': ONE}
    ),
    "code for an option": lambda s: first_call(s)["by_name"]["mapping"].update({f"{CODE}, y": 1}),
    "a structure that names a module": returns("collections.defaultdict", FACTORY),
    "such a structure inside": returns(
        "builtins.tuple", "null", LEAF, {**LEAF, "type": "collections.defaultdict"}
    ),
    "keys that name a module": returns("builtins.dict", ENUM),
    "no keys": returns("builtins.dict", "null"),
    "too few keys": returns("builtins.dict", '["a"]'),
    "a structure of another kind": returns("collections.deque", "null"),
    "too many results": returns("builtins.list", "null", LEAF, LEAF, LEAF),
    "a format": lambda s: s.update(format=99),
    "no nodes": lambda s: s["models"][""]["programs"][0].pop("nodes"),
    "an operator that reads files": lambda s: first_call(s).update(calls="aten.from_file.default"),
    "an operator that does not exist": lambda s: first_call(s).update(calls="os.system"),
    "a node that does not exist": lambda s: first_call(s)["with"].append({"node": "nobody"}),
    "a weight that does not exist": lambda s: s["models"][""]["programs"][0]["nodes"].insert(
        0, {"name": "x", "holds": "model.nothing"}
    ),
    "a structure": lambda s: s["models"][""]["programs"][0].update(structure="[1, {}]"),
    "a dtype": lambda s: s["models"][""]["programs"][0]["arguments"]["tensors"][0].__setitem__(
        1, "load"
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_refused(saved, tmp_path, what):
    changed(tmp_path, DAMAGE[what])
    with pytest.raises(InputError, match=FILE):
        lowbit.compile(again(saved), programs=tmp_path)
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    "structure",
    [
        returns("builtins.list", "null"),
        returns("builtins.tuple", "null"),
        returns("builtins.dict", '["a", "b"]'),
        returns("collections.OrderedDict", '["a", "b"]'),
    ],
)
def test_plain_structures_are_read(structure, saved, tmp_path):
    changed(tmp_path, structure)
    fresh, inputs = lowbit.compile(again(saved), programs=tmp_path), batch(9, 4)
    got = called(fresh, inputs)
    got = list(got.values()) if isinstance(got, dict) else got
    assert all(torch.equal(a, b) for a, b in zip(got, called(saved, inputs).values(), strict=True))


def test_a_missing_file_is_refused(saved, tmp_path):
    with pytest.raises(InputError, match=FILE):
        lowbit.compile(again(saved), programs=tmp_path / "nowhere")


def test_without_a_call_there_is_nothing_to_save(tmp_path):
    with pytest.raises(UsageError, match="call the compiled model first"):
        lowbit.save_programs(lowbit.compile(made("bert")), tmp_path)
    assert not list(tmp_path.iterdir())


class Named(NamedTuple):
    states: torch.Tensor


@pytest.mark.parametrize("kind", [lambda x: defaultdict(list, a=x), Named])
def test_a_program_that_could_not_be_read_is_not_saved(kind, tmp_path):
    class Wrapped(BertModel):
        def forward(self, input_ids):
            return kind(super().forward(input_ids)[0])

    model = Wrapped(made("bert").config, add_pooling_layer=False).eval()
    called(lowbit.compile(model), {"input_ids": batch(6, 6)["input_ids"]})
    with pytest.raises(UsageError, match="this program cannot be saved"):
        lowbit.save_programs(model, tmp_path)
    assert not list(tmp_path.iterdir())
