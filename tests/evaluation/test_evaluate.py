import json
import shutil
from dataclasses import replace

import pytest

import lowbit
from lowbit import InputError, UsageError
from lowbit.evaluation.compare import compare
from lowbit.evaluation.evaluate import EvaluationPlan, evaluate, load_subject
from lowbit.evaluation.latency import Shape
from lowbit.evaluation.study import Measurement, Study
from lowbit.evaluation.task import agreement
from lowbit.evaluation.tasks import TASKS, make_task
from tests.folders import save

TEXT = "a text that is long enough to predict, twice over: once for each of two windows. " * 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save("gpt2", tmp_path_factory.mktemp("models") / "source")


@pytest.fixture(scope="module")
def quantized(source):
    out = source.parent / "int4"
    lowbit.quantize_checkpoint(str(source), "int4", out, progress=False)
    return out


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    task = make_task("perplexity", data=str(tmp_path / "text.txt"), new_tokens=4, samples=2)
    return EvaluationPlan((task,), (Shape(1, 8),), peak=False)


def test_the_reference_comes_first_and_the_others_are_compared_with_it(source, quantized, plan):
    study = evaluate([quantized], plan, source, ["lowbit eval"], progress=False)
    first, second = study.models
    assert (first.name, second.name) == ("source", "int4") and study.reference is first
    [before], [after] = first.measurements, second.measurements
    assert list(before.metrics) == ["perplexity"]
    assert list(after.metrics) == ["perplexity", "KL divergence", "top-1 agreement"]
    assert before.items == after.items > 200 and len(after.samples) == 2
    assert [s.source for s in before.samples] == [s.source for s in after.samples]
    assert first.timings[0].reference_seconds is None and second.timings[0].speedup > 0
    assert study.environment["torch"] and study.commands == ("lowbit eval",)
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


def test_without_a_reference_the_first_model_is_it(source, plan):
    study = evaluate([source, source], plan, progress=False)
    assert [record.name for record in study.models] == ["source", "source (2)"]
    assert study.models[1].measurements[0].metrics["KL divergence"].value == 0


def test_a_plan_may_depend_on_the_reference(source, plan):
    seen = []
    evaluate([source], lambda subject: seen.append(subject.name) or plan, progress=False)
    assert seen == ["source"]


def test_what_a_model_cannot_do_is_told_before_any_work(tmp_path, plan):
    bert = save("bert", tmp_path / "bert")
    with pytest.raises(UsageError, match="perplexity needs a causal language model, not BertModel"):
        evaluate([bert], plan, progress=False)


def test_a_broken_model_is_told_before_another_is_measured(source, quantized, plan, tmp_path):
    bad = shutil.copytree(quantized, tmp_path / "bad")
    (bad / "model.safetensors").write_bytes((bad / "model.safetensors").read_bytes()[:-8])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lowbit.evaluation.evaluate.examine", lambda *_, **__: pytest.fail("early"))
        with pytest.raises(InputError, match="bad"):
            evaluate([quantized, bad], plan, source, progress=False)


def test_a_stride_that_cannot_be_is_told_before_any_work(source):
    plan = EvaluationPlan((make_task("perplexity", text=TEXT, context=8, stride=9),))
    with pytest.raises(UsageError, match="stride 9 is outside 1 … 8, the context"):
        plan.check(load_subject(source))


def test_a_model_beside_a_quantized_one_is_measured_like_any(quantized, plan):
    study = evaluate([quantized, quantized], plan, progress=False)
    assert [record.coverage for record in study.models] == [(), ()]


def test_agreement_is_the_share_of_equal_predictions():
    def found(*predictions):
        return Measurement("t", "d", len(predictions), "rows", {}, {}, predictions=predictions)

    assert (
        agreement(found("a", "b", "c", "d"), found("a", "x", "c", "d"))["agreement"].value == 0.75
    )
    assert agreement(found(), found()) == {} == agreement(found(1), found(1, 2))


def test_tasks_refuse_names_and_options_that_are_not_theirs():
    with pytest.raises(UsageError, match="task 'perplex' is unknown; did you mean perplexity"):
        make_task("perplex")
    with pytest.raises(UsageError, match="task generate has no option 'stride'; it has data, "):
        make_task("generate", stride=3, text="a")
    assert make_task("generate", text="a", stride=None).text == "a"
    assert all(name == kind.name for name, kind in TASKS.items())


@pytest.mark.parametrize("task", ["perplexity", "generate"])
def test_a_text_or_a_file_but_not_both(source, task):
    for options in ({}, {"data": "a", "text": "b"}):
        with pytest.raises(UsageError, match="give either data or text"):
            evaluate([source], EvaluationPlan((make_task(task, **options),)), progress=False)


def test_one_sentence_has_a_perplexity(source):
    plan = EvaluationPlan((make_task("perplexity", text="a short one"),), peak=False)
    [record] = evaluate([source], plan, progress=False).models
    assert record.measurements[0].items == len("a short one") - 1


def test_generation_reads_a_prompt_from_each_line(source, tmp_path):
    separator = "\u2028"  # ends no line
    (tmp_path / "prompts.txt").write_text(f"a{separator}c\n\n  \nxyz\n", encoding="utf-8")
    task = make_task("generate", data=str(tmp_path / "prompts.txt"), new_tokens=3)
    [record] = evaluate([source], EvaluationPlan((task,), peak=False), progress=False).models
    [found] = record.measurements
    assert [s.source for s in found.samples] == [f"a{separator}c", "xyz"]
    assert found.metrics == {}
    assert found.samples[1].output.startswith("xyz")


def test_prompts_that_are_none_are_refused(source):
    with pytest.raises(InputError, match="holds no prompt"):
        evaluate([source], EvaluationPlan((make_task("generate", text=" "),)), progress=False)


class TestCompare:
    def test_it_quantizes_measures_and_keeps_the_models(self, source, plan, tmp_path):
        study = compare(source, ["int8", "bcq2"], plan, tmp_path / "out", progress=False)
        assert [record.name for record in study.models] == ["source", "int8", "bcq2"]
        assert [record.recipe and record.recipe["name"] for record in study.models[1:]] == [
            "int8",
            "bcq2",
        ]
        again = evaluate([tmp_path / "out" / "bcq2"], plan, source, progress=False).models[1]
        assert again.measurements[0].metrics == study.models[2].measurements[0].metrics

    def test_interrupted_it_goes_on_where_it_stopped(self, source, plan, tmp_path, monkeypatch):
        import lowbit.evaluation.compare as module

        made, examine = [], module.examine

        def interrupted(subject, *rest, **more):
            made.append(subject.name)
            if subject.name == "int4" and made.count("int4") == 1:
                raise KeyboardInterrupt
            return examine(subject, *rest, **more)

        monkeypatch.setattr(module, "examine", interrupted)
        arguments = (source, ["int8", "int4"], plan, tmp_path / "out")
        with pytest.raises(KeyboardInterrupt):
            compare(*arguments, progress=False)
        assert not list((tmp_path / "out").glob("int4.json"))
        study = compare(*arguments, progress=False)
        assert made == ["source", "int8", "int4", "int4"] and len(study.models) == 3
        assert compare(*arguments, progress=False).models == study.models
        assert len(made) == 4

    def test_a_record_of_other_data_is_made_again(self, source, plan, tmp_path):
        out = tmp_path / "out"
        before = compare(source, ["int8"], plan, out, progress=False)
        (tmp_path / "text.txt").write_text(TEXT + "and more")
        after = compare(
            source,
            ["int8"],
            EvaluationPlan((replace(*plan.tasks),), (), peak=False),
            out,
            progress=False,
        )
        counts = [s.models[1].measurements[0].items for s in (before, after)]
        assert counts[1] > counts[0]

    def test_a_record_is_of_every_file_that_was_read(self, source, tmp_path, monkeypatch):
        import lowbit.evaluation.compare as module

        model, texts = tmp_path / "model", tmp_path / "texts"
        shutil.copytree(source, model)
        texts.mkdir()
        (texts / "a.txt").write_text(TEXT)
        task = make_task("perplexity", data=str(texts), samples=0)
        made, examine = [], module.examine
        monkeypatch.setattr(module, "examine", lambda *a, **k: made.append(1) or examine(*a, **k))

        def times():
            compare(
                model,
                [],
                EvaluationPlan((replace(task),), peak=False),
                tmp_path / "out",
                progress=False,
            )
            return len(made)

        assert [times(), times()] == [1, 1]
        for count, file in enumerate([texts / "a.txt", model / "tokenizer.json"], 2):
            file.write_text(file.read_text() + " ")
            assert [times(), times()] == [count, count]
        config = model / "generation_config.json"
        config.unlink()
        assert times() == 4

    @pytest.mark.parametrize(
        ("recipe", "sentence"),
        [("int8-static", "has static activations"), ("absent", r"pattern 'absent\.\*' matches no")],
    )
    def test_a_recipe_that_does_not_fit_is_told_before_the_work(
        self, source, plan, tmp_path, monkeypatch, recipe, sentence
    ):
        monkeypatch.setattr("lowbit.evaluation.compare.examine", lambda *_, **__: pytest.fail("no"))
        rules = (lowbit.Rule("absent.*", lowbit.Absmax(8)),)
        wanted = lowbit.Recipe(rules, recipe) if recipe == "absent" else recipe
        with pytest.raises(UsageError, match=sentence):
            compare(source, ["int8", wanted], plan, tmp_path / "out", progress=False)

    def test_a_damaged_record_is_made_again(self, source, plan, tmp_path):
        out = tmp_path / "out"
        before = compare(source, ["int8"], plan, out, progress=False)
        (out / "int8.json").write_text('{"schema": "lowbit-st')
        after = compare(source, ["int8"], plan, out, progress=False)
        metrics = [s.models[1].measurements[0].metrics for s in (before, after)]
        assert metrics[0] == metrics[1]

    @pytest.mark.parametrize(
        ("recipes", "sentence"),
        [
            (["int8", "int8"], "two of the models to compare are called 'int8'"),
            (["nothing"], "nothing"),
        ],
    )
    def test_recipes_that_cannot_be_compared_are_refused(
        self, source, plan, tmp_path, recipes, sentence
    ):
        with pytest.raises(UsageError, match=sentence):
            compare(source, recipes, plan, tmp_path / "out", progress=False)

    def test_a_recipe_whose_name_is_no_file_name_is_refused(self, source, plan, tmp_path):
        recipe = lowbit.Recipe((lowbit.Rule("@linear", lowbit.Absmax(8)),), "../elsewhere")
        with pytest.raises(UsageError, match="'../elsewhere' cannot name a folder"):
            compare(source, [recipe], plan, tmp_path / "out", progress=False)
