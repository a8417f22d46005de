"""A scheme is one file, one table line, one test, one page: those of this file, which CONTRIBUTING
shows, work with everything."""

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import lowbit
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import Recipe, Rule, load_recipe
from lowbit.evaluation.evaluate import EvaluationPlan, evaluate
from lowbit.evaluation.tasks import make_task
from lowbit.formats import CHANNEL, AffineLayout, AffineTensor, StackedTensor, group
from lowbit.formats.affine import encode
from lowbit.formats.scales import safe_scale
from lowbit.inspect.checkpoint import inspect_checkpoint
from lowbit.qat.projection import prepare_codes
from lowbit.report import write
from lowbit.schemes import SCHEMES, Binary, Scheme, ZeroPoint, scheme_from_dict, scheme_to_dict
from lowbit.schemes.stacked import StackedScheme
from lowbit.schemes.weight_range import weight_range
from lowbit.search.candidates import candidates_of
from tests.folders import save
from tests.models import make, output


@dataclass(frozen=True)
class Ternary(Scheme):
    """w ≈ s · t with t in −1, 0, +1; one scale s for each row.

        t = sign(w) where |w| > share · mean |w|, else 0;    s = mean |w| where t is not 0

    Source: Li and Liu 2016, "Ternary weight networks", equations 4 and 6.
    """

    name: ClassVar[str] = "ternary"
    share: float = 0.7

    def layout(self, rows: int) -> AffineLayout:
        return AffineLayout(2, CHANNEL, zero_point=False)

    def quantize(self, weight: Tensor) -> AffineTensor:
        weight_range(weight, CHANNEL)  # raises for what is no finite matrix
        weight = weight.detach().float()
        size = weight.abs()
        kept = size > self.share * size.mean(1, keepdim=True)
        mean = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
        scale = safe_scale(mean)
        return encode(weight.sign() * kept * scale.float(), scale, None, 2, CHANNEL)


@dataclass(frozen=True)
class Halves(StackedScheme):
    """Two parts: 8 bits for the first half of the rows, `bits` for the others."""

    name: ClassVar[str] = "halves"
    rest: ZeroPoint = ZeroPoint(4, group(16))

    @property
    def parts(self):
        return ZeroPoint(8, self.rest.granularity), self.rest

    def part_rows(self, rows):
        if rows < 2:
            raise lowbit.UsageError(f"{rows} row has no halves")
        return rows - rows // 2, rows // 2


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for scheme in (Ternary, Halves):
        monkeypatch.setitem(SCHEMES, scheme.name, scheme)


def ternary(weight, share):
    """As float32 and NumPy have it."""
    size = np.abs(weight)
    kept = size > np.float32(share) * size.mean(1, keepdims=True, dtype=np.float32)
    mean = (size * kept).sum(1, keepdims=True, dtype=np.float64) / kept.sum(1, keepdims=True)
    return np.sign(weight) * kept * mean.astype(np.float16).astype(np.float32)


RULES = {
    "name": "mine",
    "rules": [
        {"match": "@embedding", "scheme": "ternary"},
        {"match": "@linear", "scheme": "ternary", "share": 0.5, "activations": "dynamic"},
    ],
}
IDS = torch.arange(4 * 20).reshape(4, 20) * 7 % 199


def layer_of(model):
    return model.get_submodule("model.layers.0.mlp.up_proj")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save("llama-tied", tmp_path_factory.mktemp("models") / "tiny")


def test_contributing_shows_the_scheme_of_this_test():
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert inspect.getsource(Ternary) in page.replace("\n    ", "\n")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.7])
def test_its_codes_are_those_of_numpy(share):
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    q = Ternary(share).quantize(weight)
    np.testing.assert_allclose(
        lowbit.dequantize(q).numpy(), ternary(weight.numpy(), share), rtol=2**-10
    )
    assert q.layout == Ternary(share).layout(9)


def test_it_is_named_in_recipes(tmp_path):
    recipe = load_recipe(RULES)
    assert [rule.scheme for rule in recipe.rules] == [Ternary(), Ternary(0.5)]
    assert scheme_from_dict(scheme_to_dict(Ternary(0.5))) == Ternary(0.5)
    assert (Ternary().bits, Ternary().granularity) == (2, CHANNEL)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RULES))
    assert load_recipe(tmp_path / "mine.yaml") == recipe == Recipe.from_dict(recipe.to_dict())
    with pytest.raises(lowbit.UsageError, match="ternary has no option 'bits': use share"):
        load_recipe({"rules": [{"match": "@linear", "scheme": "ternary", "bits": 2}]})
    with pytest.raises(lowbit.UsageError, match="share of scheme ternary takes float, not 1"):
        scheme_from_dict({"scheme": "ternary", "share": 1})


def test_models_with_it_are_planned_quantized_saved_and_loaded(source, tmp_path):
    model = make("llama-tied")
    weight = layer_of(model).weight.detach().numpy()
    assert len(make_plan(model, load_recipe(RULES)).quantized) == 2 + 7 * 2
    lowbit.quantize(model, RULES, progress=False)
    decoded = lowbit.dequantize(layer_of(model).stored_weight).numpy()
    np.testing.assert_allclose(decoded, ternary(weight, 0.5), rtol=2**-10)
    expected = output(model)
    model.save_pretrained(tmp_path / "memory")
    lowbit.quantize_checkpoint(str(source), RULES, tmp_path / "streamed", progress=False)
    config = lowbit.LowbitConfig(RULES)
    for other in (
        type(model).from_pretrained(tmp_path / "memory"),
        type(model).from_pretrained(tmp_path / "streamed"),
        type(model).from_pretrained(source, quantization_config=config),
    ):
        assert torch.equal(output(other), expected)
        assert other.config.quantization_config.recipe == load_recipe(RULES)
    assert torch.equal(layer_of(model.dequantize()).weight, torch.from_numpy(decoded))


def test_any_module_with_it_is_saved_and_loaded(tmp_path):
    def built():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))

    module, x = built(), torch.randn(3, 24)
    lowbit.quantize(module, {"rules": [RULES["rules"][1]]}, progress=False)
    lowbit.save(module, tmp_path / "module")
    loaded = built()
    lowbit.load(loaded, tmp_path / "module")
    assert torch.equal(loaded(x), module(x))


def test_models_with_it_are_inspected_and_reported(source, tmp_path):
    lowbit.quantize_checkpoint(str(source), RULES, tmp_path / "small", progress=False)
    rows = {row.size.name: row for row in inspect_checkpoint(tmp_path / "small").rows}
    row = rows["model.layers.0.mlp.up_proj"]
    assert row.stored_as == "affine 2-bit channel, dynamic int8 activations" and row.kernel
    task = make_task("perplexity", text="a text that is long enough to predict. " * 6)
    plan = EvaluationPlan((task,), peak=False)
    study = evaluate([str(tmp_path / "small")], plan, against=str(source), progress=False)
    write(study, [tmp_path / "report.html", tmp_path / "report.md"])
    for page in ("report.html", "report.md"):
        assert "ternary" in (tmp_path / page).read_text()


@pytest.mark.parametrize("estimator", ["ste", "clipped", "lsq"])
def test_training_that_sees_it_ends_in_it(estimator):
    model = make("llama-tied")
    lowbit.prepare_qat(model, RULES, lowbit.QatOptions(estimator))
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    expected = output(model.eval())
    lowbit.finish_qat(model, progress=False)
    assert layer_of(model).layout == Ternary().layout(192)
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-4)


def test_codes_that_are_projected_are_binary_ones():
    with pytest.raises(lowbit.UsageError, match="codes needs the scheme binary, not ternary"):
        prepare_codes(make("llama-tied"), load_recipe(RULES))


@pytest.mark.parametrize("solver", ["hqq", "gptq", {"name": "autoround", "iterations": 2}, "awq"])
def test_solvers_of_affine_codes_find_its_codes(solver):
    model = make("llama-tied")
    data = None if solver == "hqq" else IDS
    lowbit.quantize(model, RULES, progress=False, calibration=data, solver=solver)
    assert layer_of(model).layout == Ternary().layout(192)
    assert output(model).isfinite().all()


def test_a_solver_of_binary_codes_refuses_it():
    with pytest.raises(lowbit.UsageError, match="is for binary codes, not for scheme ternary"):
        lowbit.quantize(make("llama-tied"), RULES, False, IDS, solver="binary")


def test_it_is_simulated_and_searched():
    model = make("llama-tied")
    weight = layer_of(model).weight.detach().clone().numpy()
    stored = candidates_of(model, [Ternary()], ["@embedding"], progress=False)
    assert {option.scheme for options in stored for option in options} == {None, Ternary()}
    errors = lowbit.simulate(model, Ternary())
    wanted = ternary(weight, 0.7)
    np.testing.assert_allclose(layer_of(model).weight.detach().numpy(), wanted, rtol=2**-10)
    error = errors["model.layers.0.mlp.up_proj.weight"]
    assert error == pytest.approx(np.square(weight - wanted).mean(), rel=1e-3)


def test_one_with_parts_is_stored_as_a_stack(tmp_path):
    rules = {"rules": [{"match": "*.up_proj", "scheme": "halves", "bits": 3}]}
    assert load_recipe(rules).rules[0].scheme == Halves(ZeroPoint(3, group(16)))
    model = make("llama-tied")
    lowbit.quantize(model, rules, progress=False)
    q = layer_of(model).stored_weight
    assert isinstance(q, StackedTensor) and [p.shape[0] for p in q.parts] == [96, 96]
    assert [part.bits for part in q.parts] == [8, 3]
    model.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path)), output(model))
    trained = make("llama-tied")
    lowbit.prepare_qat(trained, rules)
    lowbit.finish_qat(trained, progress=False)
    assert torch.equal(output(trained), output(model))
    for solver, sentence in (("gptq", "halves has others"), ("binary", "not for scheme zero-p")):
        with pytest.raises(lowbit.UsageError, match=sentence):
            lowbit.quantize(make("llama-tied"), rules, False, IDS, solver=solver)
    with pytest.raises(lowbit.UsageError, match="codes needs the scheme binary, not zero-point"):
        prepare_codes(make("llama-tied"), load_recipe(rules))


def test_every_scheme_says_its_layout_and_what_does_not_fit():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    for kind in SCHEMES.values():
        scheme = kind()
        assert scheme.layout(8) == scheme.quantize(weight).layout
        assert scheme.misfit(8, 256) is None
        assert scheme.misfit(8, 0) == "it has no inputs"
        assert all(hasattr(scheme, f.name) for f in fields(scheme))
    assert Halves().misfit(1, 64) == "1 row has no halves"
    few = Recipe((Rule("@linear", Binary(2, group(512))),))
    with pytest.raises(lowbit.UsageError, match="group size 512 is larger than the 128 inputs"):
        make_plan(make("llama-tied"), few)
