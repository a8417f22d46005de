import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from lowbit import Binary, ZeroPoint, footprint, quantize
from lowbit.calibration import batches_of
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.study import Metric
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks import make_task
from lowbit.formats import CHANNEL, group
from lowbit.kernels.ops import dequantize
from lowbit.search.budget import Budget
from lowbit.search.candidates import candidates_of, recipe_of
from lowbit.search.costs import MEASURES
from lowbit.search.search import _of_size, search
from lowbit.solvers import Solver
from tests.folders import byte_tokenizer
from tests.models import BERT, VOCABULARY, make

SCHEMES = [ZeroPoint(bits, group(64)) for bits in (2, 4, 8)]
IDS = torch.arange(4 * 32).reshape(4, 32) * 7 % VOCABULARY


@pytest.fixture(scope="module")
def subject():
    return Subject("tiny", make("gpt2"), byte_tokenizer())


@pytest.fixture(scope="module")
def task():
    return make_task("perplexity", text="a text that is long enough to predict. " * 6, samples=0)


def searched(subject, task, schemes=SCHEMES, calibration=IDS, **options):
    keys = {key: options.pop(key) for key in list(options) if key.startswith("max_")}
    return search(subject, Budget(**keys), task, schemes, calibration, progress=False, **options)


@pytest.mark.parametrize("bits", [3.0, 5.5])
def test_what_is_reported_is_what_quantizing_with_the_recipe_gives(subject, task, bits):
    before = {name: p.clone() for name, p in subject.model.named_parameters()}
    found = searched(subject, task, max_bits=bits)
    for name, p in subject.model.named_parameters():
        assert torch.equal(p, before[name]), name
    model = make("gpt2")
    quantize(model, found.best.recipe, progress=False)
    size = footprint(model)
    assert size.bits_per_weight <= bits
    assert (size.stored_bytes, size.bits_per_weight) == (
        found.best.stored_bytes, found.best.bits_per_weight,
    )  # fmt: skip
    value = task.measure(Subject("", model, subject.tokenizer), False).metrics["perplexity"].value
    assert value == pytest.approx(found.best.metric.value, rel=1e-5)
    float_value = task.measure(subject, False).metrics["perplexity"].value
    assert found.best.drop == pytest.approx(value / float_value - 1, abs=1e-5)
    assert all(found.best.drop <= trial.drop for trial in found.trials)
    assert all(trial.bits_per_weight <= bits for trial in found.trials)
    assert found.trials[0].by == "divergence"
    assert {c.module for c in found.best.choices} >= {"transformer.wte", "transformer.h.0.mlp.c_fc"}


def test_a_budget_that_none_can_meet_names_the_smallest(subject, task):
    with pytest.raises(InputError, match="smallest possible here is ([0-9,]+) bytes") as raised:
        searched(subject, task, max_bits=1.0)
    smallest = int(str(raised.value).split("here is ")[1].split(" ")[0].replace(",", ""))
    assert searched(subject, task, max_bytes=smallest).best.stored_bytes == smallest


def test_a_budget_is_refused_before_anything_is_evaluated(subject, task, monkeypatch):
    monkeypatch.setattr(type(task), "measure", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(InputError, match="smallest possible here"):
        searched(subject, task, max_bytes=1)
    with pytest.raises(UsageError, match="the float model takes"):
        searched(subject, task, max_bytes=10**12)


def test_modules_that_are_kept_stay_float(subject, task):
    found = searched(subject, task, max_bits=20.0, keep=["transformer.wte", "*.c_proj"])
    assert not any("c_proj" in c.module or "wte" in c.module for c in found.best.choices)
    model = make("gpt2")
    quantize(model, found.best.recipe, progress=False)
    assert type(model.transformer.wte).__name__ == "Embedding"


class Scripted:
    """A task whose metric depends on the size alone, so that the answer is known."""

    name = "scripted"

    def __init__(self, threshold):
        self.threshold, self.seen = threshold, []

    def check(self, subject):
        pass

    def measure(self, subject, progress=True):
        size = footprint(subject.model).stored_bytes
        self.seen.append(size)
        return type("M", (), {
            "metrics": {"score": Metric(1.0 if size >= self.threshold else 0.5, "higher")},
            "main_metric": "score",
        })  # fmt: skip


def test_a_drop_is_kept_and_the_smallest_that_was_seen_to_keep_it_is_taken(subject):
    threshold = 250_000
    task = Scripted(threshold)
    found = searched(subject, task, max_drop=0.01, measures=["hessian"])
    assert found.best.drop == 0 and found.best.stored_bytes >= threshold
    assert found.best.stored_bytes == min(s for s in task.seen if s >= threshold)
    assert any(size < threshold for size in task.seen)


def test_a_drop_that_no_recipe_keeps_is_an_error(subject):
    task = Scripted(footprint(subject.model).stored_bytes)
    with pytest.raises(InputError, match="within 1.00%: the smallest was 50.00%"):
        searched(subject, task, max_drop=0.01, measures=["hessian"])


def test_a_metric_that_is_no_number_meets_no_budget(subject):
    class Nowhere(Scripted):
        def measure(self, subject, progress=True):
            found = super().measure(subject)
            value = 1.0 if len(self.seen) == 1 else math.nan
            found.metrics = {"score": Metric(value, "higher")}
            return found

    with pytest.raises(InputError, match="a number"):
        searched(subject, Nowhere(0), max_bits=5.0, measures=["hessian"])
    with pytest.raises(InputError, match="keeps the drop"):
        searched(subject, Nowhere(0), max_drop=0.5, measures=["hessian"])


@pytest.mark.slow
def test_solvers_and_binary_codes_may_be_chosen_from(subject, task):
    schemes = [Binary(bits, CHANNEL) for bits in (1, 2)]
    solver = Solver("binary", {"passes": 0})
    found = searched(subject, task, schemes, max_bits=2.7, solver=solver, measures=["hessian"])
    assert found.best.bits_per_weight <= 2.7
    assert {c.scheme for c in found.best.choices} <= {None, *schemes}


def test_candidates_are_what_the_solver_makes_of_the_whole_model():
    model, quantized, schemes = make("gpt2"), make("gpt2"), [ZeroPoint(2, group(64))]
    before = {name: p.clone() for name, p in model.named_parameters()}
    solver, batches = Solver("gptq"), batches_of(IDS, model)
    candidates = candidates_of(model, schemes, ["@embedding", "@head"], False, solver, batches)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    recipe = recipe_of([options[1] for options in candidates])
    quantize(quantized, recipe, progress=False, calibration=IDS, solver=solver)
    assert len(candidates) == 8
    for _, candidate in candidates:
        module = quantized.get_submodule(candidate.module)
        assert torch.equal(dequantize(candidate.stored), dequantize(module.stored_weight))
    # AWQ scales parameters that all candidates share.
    plain, moved = (
        candidates_of(model, schemes, ["@embedding"], False, Solver(name), batches)
        for name in ("nearest", "awq")
    )
    for (_, one), (_, other) in zip(plain, moved, strict=True):
        assert torch.equal(dequantize(one.stored), dequantize(other.stored))


def test_padding_does_not_count_and_every_token_weighs_alike():
    model = make("bert")
    candidates = candidates_of(model, [ZeroPoint(2, group(64))], ["@embedding"], progress=False)
    short, long = IDS[:1, :5], IDS[1:2, :30]
    padded = torch.zeros(2, 30, dtype=torch.int64)
    padded[0, :5], padded[1] = short[0], long[0]
    mask = torch.tensor([[1] * 5 + [0] * 25, [1] * 30])
    ways = [
        [{"input_ids": padded, "attention_mask": mask}],
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in (short, long)],
    ]
    one, other = (MEASURES["divergence"](model, candidates, way, False) for way in ways)
    np.testing.assert_allclose(one, other, rtol=1e-4)
    assert max(cost for costs in one for cost in costs) > 0


def test_a_choice_that_breaks_the_model_does_not_look_free():
    model = make("gpt2")
    candidates = candidates_of(model, [ZeroPoint(2, group(64))], [], progress=False)
    candidates[0][1].stored.scale.fill_(math.nan)
    costs = MEASURES["divergence"](model, candidates, [{"input_ids": IDS}], False)
    assert math.isnan(costs[0][1]) and costs[0][0] == 0
    assert all(math.isfinite(cost) for own in costs[1:] for cost in own)


def test_both_ends_of_answers_count():
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**BERT)).eval()
    candidates = candidates_of(model, [ZeroPoint(2, group(64))], ["@embedding"], progress=False)
    mask = (torch.arange(32) < torch.tensor([[32], [9], [20], [5]])).long()
    batch = {"input_ids": IDS, "attention_mask": mask}
    (costs,) = MEASURES["divergence"](model, candidates[-1:], [batch], False)
    (_, candidate) = candidates[-1]
    assert candidate.module == "qa_outputs"
    with torch.no_grad():
        before = model(**batch)
        model.qa_outputs.weight.data = dequantize(candidate.stored)
        after = model(**batch)
    parts = []
    for name in ("start_logits", "end_logits"):
        one, other = (out[name][mask.bool()].double().numpy() for out in (before, after))
        parts.append((((one - other) ** 2).sum(), (one**2).sum()))
    expected = sum(part for part, _ in parts) / sum(whole for _, whole in parts)
    assert costs[1] == pytest.approx(expected, rel=1e-4) and costs[1] > 0


def test_models_that_grow_when_they_are_made_are_chosen_again_with_less_room():
    """Candidates of 10 … 90 bytes of which 40 more are made, for a budget of 100."""

    class Space:
        smallest, progress = 10, False

        def fitting(self, costs, limit):
            return [min(9, limit // 10)]

        uniform = fitting

        def size(self, picked):
            return 10 * picked[0]

        def tried(self, by, picked, costs):
            return SimpleNamespace(by=by, stored_bytes=self.size(picked) + 40, picked=picked)

    trials = list(_of_size(Space(), [None, None], ["a", "b"], 100))
    assert [(trial.by, trial.picked) for trial in trials] == [("a", [6])]


def test_a_solver_that_cannot_make_a_scheme_says_so_before_anything_is_evaluated(subject):
    task = Scripted(0)
    with pytest.raises(UsageError, match="affine codes, and scheme binary"):
        searched(subject, task, [Binary(2, CHANNEL)], max_bits=4.0, solver="gptq")
    assert task.seen == []


@pytest.mark.parametrize("name", ["bert", "bart", "gpt2"])
def test_sensitivities_are_those_of_one_module_at_a_time(name):
    model = make(name)
    candidates = candidates_of(model, [ZeroPoint(2, group(64))], ["@embedding"], progress=False)
    batch = {"input_ids": IDS}
    if name == "bart":
        batch["decoder_input_ids"] = IDS[:, :8]
    costs = {m: MEASURES[m](model, candidates, [batch], False) for m in MEASURES}
    with torch.no_grad():
        wanted = model(**batch)[0].double().numpy()
    for i in (0, len(candidates) - 1):
        _, candidate = candidates[i]
        module = model.get_submodule(candidate.module)
        before, seen = module.weight.data, []
        hook = module.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        decoded = dequantize(candidate.stored)
        with torch.no_grad():
            model(**batch)
            module.weight.data = decoded.t() if candidate.decision.weights.transposed else decoded
            got = model(**batch)[0].double().numpy()
        module.weight.data = before
        hook.remove()
        if name == "bert":
            expected = ((wanted - got) ** 2).sum() / (wanted**2).sum()
        else:
            log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (wanted, got))
            expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
        assert costs["divergence"][i] == [0.0, pytest.approx(expected, rel=0.02, abs=1e-7)]
        x = seen[0].flatten(0, -2).double().numpy()
        matrix = before.t() if candidate.decision.weights.transposed else before
        outputs = x @ matrix.double().numpy().T
        moved = outputs - x @ decoded.double().numpy().T
        expected = (moved**2).sum() / (outputs**2).sum()
        assert costs["hessian"][i] == [0.0, pytest.approx(expected, rel=1e-3)]


@pytest.mark.parametrize(
    ("size", "bits", "drop", "wanted"),
    [
        ("20MB", None, None, Budget(max_bytes=20_000_000)),
        ("1.5 GiB", None, None, Budget(max_bytes=3 << 29)),
        ("100b", None, None, Budget(max_bytes=100)),
        (None, 3.2, None, Budget(max_bits=3.2)),
        (None, None, "1%", Budget(max_drop=0.01)),
        (None, None, ".02", Budget(max_drop=0.02)),
    ],
)
def test_budgets_are_read_from_text(size, bits, drop, wanted):
    assert Budget.parse(size, bits, drop) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, None), "one budget, of size, bits or drop, not 0"),
        (("20MB", 3.0, None), "not 2"),
        (("20", None, None), "size '20' is not a number with a unit"),
        (("MB", None, None), "size 'MB'"),
        ((None, None, "1 percent"), "drop '1 percent'"),
        ((None, -1.0, None), "a number from 0 on, not -1.0"),
        ((None, math.nan, None), "a number from 0 on, not nan"),
        ((None, math.inf, None), "a number from 0 on, not inf"),
    ],
)
def test_a_budget_that_is_none_gets_one_sentence(given, message):
    with pytest.raises(UsageError, match=message):
        Budget.parse(*given)
