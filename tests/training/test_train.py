"""Training end to end, on models that train in seconds."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
)

import lowbit
from lowbit import InputError, UsageError
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.recipe import PRESETS, Recipe, load_recipe
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.glue import Glue
from lowbit.qat.modules import FakeQuantized
from lowbit.qat.prepare import QatOptions
from lowbit.training import bfloat16
from lowbit.training.bcq import BcqPlan
from lowbit.training.glue import teach
from lowbit.training.lesson import Material, load_with_head
from lowbit.training.settings import Settings
from lowbit.training.train import first_process, prepare, train
from lowbit.training.trainer import LessonTrainer, arguments, checkpoints
from tests.folders import save
from tests.models import BERT, make

WORDS = ("good", "fine", "nice", "glad"), ("bad", "poor", "sad", "dull")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2's layout: sentences whose words say the label."""
    folder = tmp_path_factory.mktemp("data") / "SST-2"
    folder.mkdir()
    for split, rows in (("train", 160), ("dev", 40)):
        lines = ["sentence\tlabel"]
        for row in range(rows):
            label = row % 2
            chosen = [WORDS[1 - label][(row // 2 + k) % 4] for k in range(2)]
            lines.append(f"{' '.join(chosen)}\t{label}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def material(source, data):
    return Material(str(source), load_tokenizer(source), str(data), "sst2", max_length=16)


QUICK = Settings(learning_rate=2e-3, epochs=6, batch_size=16, seed=3, weight_decay=0.0)


def accuracy(outcome, name):
    return outcome.measurements[name].metrics["accuracy"].value


@pytest.mark.parametrize(
    "qat",
    [
        "none",
        pytest.param("int8", marks=pytest.mark.slow),
        pytest.param("int4-dynamic", marks=pytest.mark.nightly),
    ],
)
def test_a_short_training_learns_and_saves_float_and_integer_models(source, data, tmp_path, qat):
    settings = replace(QUICK, qat=qat)
    outcome = train("glue", material(source, data), tmp_path, settings, progress=False)
    names = ["float"] if qat == "none" else ["fake-quantized", "integer"]
    assert list(outcome.measurements) == names and outcome.steps == 60
    assert all(accuracy(outcome, name) >= 0.9 for name in names)
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["steps"] == 60 and told["settings"]["qat"] == qat
    floats = AutoModelForSequenceClassification.from_pretrained(tmp_path / "float")
    assert floats.config.id2label == {0: "negative", 1: "positive"}
    assert not any("quantizer" in name for name in load_file(tmp_path / "float/model.safetensors"))
    if qat != "none":
        assert outcome.measurements["integer"].metrics["agreement"].value >= 0.995
        integer = AutoModelForSequenceClassification.from_pretrained(tmp_path / qat)
        assert integer.is_quantized and not hasattr(floats.config, "quantization_config")


@pytest.mark.slow
def test_resuming_gives_the_weights_of_a_training_that_was_not_stopped(source, data, tmp_path):
    settings = replace(
        QUICK,
        qat="int8",
        epochs=2,
        save_steps=4,
        evaluate_during_training=False,
        options=QatOptions(start=3),
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for output in (whole, stopped):
        train(
            "glue", material(source, data), output, settings, progress=False, keep_checkpoints=True
        )
    # As a kill after step 16 would have left it, in the second epoch.
    (stopped / "training.json").unlink()
    last = checkpoints(stopped)[-1]
    assert last.name == "checkpoint-20"
    (last / "trainer_state.json").unlink()
    assert checkpoints(stopped)[-1].name == "checkpoint-16"
    train("glue", material(source, data), stopped, settings, resume=True, progress=False)
    assert_equal_models(whole, stopped)


def assert_equal_models(whole, stopped):
    for folder in ("float", "int8"):
        one, other = (load_file(run / folder / "model.safetensors") for run in (whole, stopped))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_resuming_after_the_last_step_inside_an_epoch_trains_no_more(source, data, tmp_path):
    settings = replace(
        QUICK, qat="int8", max_steps=6, evaluate_during_training=False,
        schedule="constant_with_warmup",
    )  # fmt: skip
    for output in (tmp_path / "whole", tmp_path / "stopped"):
        train(
            "glue", material(source, data), output, settings, progress=False, keep_checkpoints=True
        )
    (tmp_path / "stopped" / "training.json").unlink()
    again = train(
        "glue", material(source, data), tmp_path / "stopped", settings, resume=True, progress=False
    )
    assert again.steps == 6
    assert_equal_models(tmp_path / "whole", tmp_path / "stopped")


def test_going_on_is_refused_with_other_settings_and_without_a_checkpoint(source, data, tmp_path):
    lesson, out = material(source, data), tmp_path / "out"
    settings = replace(QUICK, max_steps=2, evaluate_during_training=False)
    train("glue", lesson, out, settings, progress=False)
    for other, words in (
        (replace(settings, qat="int8"), "began with qat none and cannot go on with int8"),
        (replace(settings, max_steps=3), "began with max_steps 2 and cannot go on with 3"),
    ):
        with pytest.raises(UsageError, match=words):
            train("glue", lesson, out, other, resume=True, progress=False)
    for other, words in (
        (replace(lesson, max_length=8), "began with max_length 16 and cannot go on with 8"),
        (replace(lesson, subset="cola"), "began with subset sst2 and cannot go on with cola"),
        (replace(lesson, data=str(tmp_path)), "began with data .*SST-2 and cannot go on"),
    ):
        with pytest.raises(UsageError, match=words):
            train("glue", other, out, settings, resume=True, progress=False)
    spelled = replace(lesson, subset="SST-2")
    assert train("glue", spelled, out, settings, resume=True, progress=False).steps == 2
    # What there is stays until the new training can begin.
    nowhere = replace(lesson, data=str(tmp_path / "nowhere"))
    with pytest.raises(InputError):
        train("glue", nowhere, out, settings, overwrite=True, progress=False)
    assert (out / "float").exists() and (out / "training.json").exists()


def test_a_finished_training_leaves_no_checkpoints_unless_asked(source, data, tmp_path):
    settings = replace(QUICK, max_steps=2, evaluate_during_training=False)
    train("glue", material(source, data), tmp_path / "a", settings, progress=False)
    kept = {"progress": False, "keep_checkpoints": True}
    train("glue", material(source, data), tmp_path / "b", settings, **kept)
    assert not checkpoints(tmp_path / "a") and len(checkpoints(tmp_path / "b")) == 1


@pytest.mark.parametrize("estimator", ["ste", "lsq"])
def test_the_end_of_a_training_can_be_repeated(source, data, tmp_path, estimator):
    options = QatOptions(estimator=estimator, ranges="ema")
    settings = replace(QUICK, qat="int8-all", max_steps=4, options=options)
    settings = replace(settings, evaluate_during_training=False)
    first = train("glue", material(source, data), tmp_path, settings, progress=False)
    before = load_file(tmp_path / "int8-all" / "model.safetensors")
    shutil.rmtree(tmp_path / "int8-all")
    again = train("glue", material(source, data), tmp_path, settings, resume=True, progress=False)
    after = load_file(tmp_path / "int8-all" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert again.steps == first.steps and again.measurements == first.measurements


def test_a_repeated_end_keeps_what_it_cannot_find_out_again(source, data, tmp_path):
    settings = replace(QUICK, qat="int8-all", max_steps=4, options=QatOptions(ranges="ema"))
    given = {"progress": False, "keep_checkpoints": True}
    first = train("glue", material(source, data), tmp_path, settings, baseline=True, **given)
    assert first.history and first.losses and any("random" in note for note in first.notes)
    assert checkpoints(tmp_path) and checkpoints(tmp_path / "baseline")
    for _ in "twice":
        again = train(
            "glue", material(source, data), tmp_path, settings, resume=True, progress=False
        )
        assert again.losses == first.losses and again.seconds == first.seconds
        assert set(first.notes) <= set(again.notes) and len(again.history) == len(first.history)
        assert json.loads((tmp_path / "training.json").read_text())["history"]
        assert checkpoints(tmp_path) and checkpoints(tmp_path / "baseline")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UsageError, match="began with epochs 6 and cannot go on with 7"):
        other = replace(settings, epochs=7)
        train("glue", material(source, data), tmp_path, other, resume=True, progress=False)
    for folder in (tmp_path / "baseline", tmp_path):
        (folder / "training.json").write_text("{}")
        with pytest.raises(InputError, match=f"{folder}/training.json is not what a training"):
            train("glue", material(source, data), tmp_path, settings, resume=True, progress=False)


def test_a_training_that_starts_again_leaves_nothing_of_the_one_before(source, data, tmp_path):
    out, quick = tmp_path / "out", {"max_steps": 1, "options": QatOptions(ranges="ema")}
    settings = replace(QUICK, qat="int8-all", evaluate_during_training=False, **quick)
    lesson, given = material(source, data), {"progress": False, "overwrite": True}
    train("glue", lesson, out, settings, baseline=True, **given)
    assert (out / "int8-all").is_dir() and (out / "baseline").is_dir()
    inside = replace(lesson, model=str(out / "int8-all"))
    with pytest.raises(UsageError, match="holds the model .*int8-all: choose another output"):
        train("glue", inside, out, settings, **given)
    with pytest.raises(UsageError, match="--resume or --overwrite, one of them"):
        train("glue", lesson, out, settings, resume=True, **given)
    train("glue", lesson, out, replace(settings, qat="int4-all"), **given)
    assert {path.name for path in out.iterdir() if path.is_dir() and path.name[0] != "."} == {
        "checkpoints", "float", "int4-all",
    }  # fmt: skip


def test_going_on_is_refused_with_another_tokenizer_or_another_file_of_a_recipe(
    source, data, tmp_path
):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(load_recipe("int8-all-dynamic").to_yaml())
    settings = replace(QUICK, qat=str(recipe), max_steps=1, evaluate_during_training=False)
    train("glue", material(source, data), tmp_path / "out", settings, progress=False)
    given = {"resume": True, "progress": False}
    lesson = material(source, data)
    lesson.tokenizer.add_tokens(["other"])
    with pytest.raises(UsageError, match=r"began with tokenizer of \d+ tokens, \w+ and cannot"):
        train("glue", lesson, tmp_path / "out", settings, **given)
    recipe.write_text(load_recipe("int4-all-dynamic").to_yaml())
    with pytest.raises(UsageError, match="began with recipe .*'bits': 8.* and cannot go on"):
        train("glue", material(source, data), tmp_path / "out", settings, **given)


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["absent", "cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over(source, data, tmp_path, file, damage):
    for step in (2, 4):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"a": torch.ones(100)}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"a": torch.ones(100)}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoints" / "checkpoint-4.bak").mkdir()
    assert [c.name for c in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    whole = (folder / file).read_bytes()
    if damage == "absent":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"{}")
    assert [c.name for c in checkpoints(tmp_path)] == ["checkpoint-2"]


def kill(*args):
    raise KeyboardInterrupt


def test_a_killed_training_that_replaces_another_removes_its_models_when_it_goes_on(
    source, data, tmp_path, monkeypatch
):
    lesson, settings = material(source, data), replace(QUICK, qat="int8", epochs=1, save_steps=4)
    settings = replace(settings, evaluate_during_training=False)
    train("glue", lesson, tmp_path, settings, progress=False)
    other = replace(settings, qat="int4")
    with monkeypatch.context() as killed:
        killed.setattr("lowbit.training.train.finish", kill)
        with pytest.raises(KeyboardInterrupt):
            train("glue", lesson, tmp_path, other, overwrite=True, progress=False)
    assert (tmp_path / "int8").is_dir()  # until there is another
    train("glue", lesson, tmp_path, other, resume=True, progress=False)
    folders = {folder.name for folder in tmp_path.iterdir() if folder.is_dir()}
    assert folders == {"checkpoints", "float", "int4"}
    assert not (tmp_path / "checkpoints" / "replaced.json").exists()


def test_a_repeated_end_has_the_notes_of_the_first(source, data, tmp_path):
    settings = replace(
        QUICK, qat="int8", epochs=1, evaluate_during_training=False, options=QatOptions(start=3)
    )
    first = train("glue", material(source, data), tmp_path, settings, progress=False)
    again = train("glue", material(source, data), tmp_path, settings, True, progress=False)
    assert again.notes == first.notes


def test_of_several_processes_the_first_repeats_an_end(source, data, tmp_path, monkeypatch):
    settings = replace(QUICK, qat="int8", epochs=1, evaluate_during_training=False)
    train("glue", material(source, data), tmp_path, settings, progress=False)
    told = (tmp_path / "training.json").stat().st_mtime_ns
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    other = train("glue", material(source, data), tmp_path, settings, True, progress=False)
    assert other.folders == () and other.steps == 10
    assert (tmp_path / "training.json").stat().st_mtime_ns == told


@pytest.mark.parametrize(
    ("world", "rank", "first"),
    [(None, None, True), ("1", "3", True), (None, "3", True), ("2", "1", False), ("2", "0", True)],
)
def test_which_process_writes(world, rank, first, monkeypatch):
    for name, value in (("WORLD_SIZE", world), ("RANK", rank)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert first_process() == first


def test_the_best_checkpoint_is_found_where_a_moved_folder_has_it(source, data, tmp_path):
    settings = replace(QUICK, epochs=3)
    lesson, before, after = material(source, data), tmp_path / "before", tmp_path / "after"
    LessonTrainer(teach(lesson), arguments(before, settings, "accuracy", False)).train()
    before.rename(after)
    best, *_, last = checkpoints(after)
    state = json.loads((last / "trainer_state.json").read_text())
    state |= {"best_metric": 2.0, "best_global_step": int(best.name.split("-")[1])}
    state["best_model_checkpoint"] = str(before / "checkpoints" / best.name)
    (last / "trainer_state.json").write_text(json.dumps(state))
    taught = teach(lesson)
    trainer = LessonTrainer(taught, arguments(after, settings, "accuracy", False))
    trainer.train(resume_from_checkpoint=str(last))
    kept, end = (load_file(folder / "model.safetensors") for folder in (best, last))
    assert not torch.equal(kept["classifier.weight"], end["classifier.weight"])
    assert all(torch.equal(p, kept[n]) for n, p in taught.model.named_parameters())


def test_no_score_from_before_rounding_starts_is_the_best(source, data, tmp_path):
    settings = replace(QUICK, qat="int8", options=QatOptions(start=2))
    made = prepare(teach, material(source, data), settings)
    trainer = LessonTrainer(made.lesson, arguments(tmp_path, settings, "accuracy", False))
    scores = {"eval_accuracy": 0.9, "eval_loss": 0.1}
    assert not trainer._determine_best_metric(scores, None)
    assert trainer.state.best_metric is None
    unused, *layers = (m for m in trainer.lesson.model.modules() if isinstance(m, FakeQuantized))
    for steps, is_best in ((2, False), (3, True)):
        for layer in layers:
            layer.steps.fill_(steps)
        assert trainer._determine_best_metric({**scores, "eval_accuracy": 0.5}, None) == is_best
    assert not unused.steps
    assert trainer.state.best_metric == 0.5


def test_one_process_trains_on_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    assert arguments(tmp_path, QUICK, None, False)._n_gpu == 1


def test_a_training_goes_on_from_the_ranges_that_another_learned(source, data, tmp_path):
    """Also where the integer model is named, which stands for the float model beside it."""
    settings = replace(QUICK, qat="int8-all", max_steps=4, evaluate_during_training=False)
    train("glue", material(source, data), tmp_path / "one", settings, progress=False)
    learned = load_file(tmp_path / "one" / "float" / "qat.safetensors")
    for start in ("float", "int8-all"):
        lesson = replace(material(source, data), model=str(tmp_path / "one" / start))
        still = replace(settings, learning_rate=0.0, max_steps=1)
        out = tmp_path / start
        outcome = train("glue", lesson, out, still, progress=False)
        assert any("ranges and scales go on from" in note for note in outcome.notes)
        after = load_file(out / "float" / "qat.safetensors")
        steps = [name for name in after if name.endswith(".steps")]
        assert steps and all(after[name] == learned[name] + 1 for name in steps)
        weights = [load_file(f / "float/model.safetensors") for f in (tmp_path / "one", out)]
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    # Another recipe has other ranges.
    other = replace(still, qat="int4")
    outcome = train("glue", lesson, tmp_path / "other", other, progress=False)
    assert any("it is not used" in note for note in outcome.notes)


def test_a_baseline_is_the_training_in_float_and_tells_what_is_lost(source, data, tmp_path):
    settings = replace(QUICK, qat="int8-all", epochs=2, options=QatOptions(ranges="ema"))
    given = {"progress": False, "baseline": True}
    outcome = train("glue", material(source, data), tmp_path / "both", settings, **given)
    assert list(outcome.measurements) == ["float", "fake-quantized", "integer"]
    alone = train(
        "glue", material(source, data), tmp_path / "alone", replace(settings, qat="none",
        options=QatOptions()), progress=False,
    )  # fmt: skip
    assert outcome.measurements["float"].predictions == alone.measurements["float"].predictions
    float_, integer = (accuracy(outcome, name) for name in ("float", "integer"))
    lost = outcome.losses["integer"]
    assert lost.percent == pytest.approx(100 * (float_ - integer) / float_)
    assert lost.low <= lost.percent <= lost.high
    told = json.loads((tmp_path / "both" / "training.json").read_text())
    assert told["losses"]["integer"]["percent"] == lost.percent
    assert told["history"] and set(told["measurements"]) == set(outcome.measurements)
    with pytest.raises(UsageError, match="baseline is float, and so is this training"):
        train("glue", material(source, data), tmp_path / "no", QUICK, **given)


def test_one_class_and_one_file_are_no_training_data(source, data, tmp_path):
    folder = tmp_path / "SST-2"
    folder.mkdir()
    rows = ["sentence\tlabel", *(f"good {word}\t1" for word in WORDS[0])]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    for given, sentence in (
        (folder, "train.tsv has 4 rows and one label, positive: there is nothing to learn"),
        (data / "train.tsv", "is one file; a model must not be scored on its training data"),
    ):
        with pytest.raises(lowbit.LowbitError, match=sentence):
            train("glue", material(source, given), tmp_path / "out", QUICK, progress=False)
    assert not (tmp_path / "out").exists()


def test_of_equal_scores_the_lower_loss_is_the_best(source, data, tmp_path):
    lesson = teach(material(source, data))
    trainer = LessonTrainer(lesson, arguments(tmp_path, QUICK, "accuracy", False))
    kept = []
    scores = ((0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.6, 2.0), (0.6, 1.5))
    for step, (accuracy, loss) in enumerate(scores, 1):
        trainer.state.global_step = step
        metrics = {"eval_accuracy": accuracy, "eval_loss": loss}
        trainer.log(metrics)
        kept.append(trainer._determine_best_metric(metrics, None))
    assert kept == [True, True, False, True, True]
    assert trainer.state.best_global_step == 5


@pytest.mark.parametrize("name", ["texts", "float", "checkpoints", "int8"])
def test_what_no_training_wrote_is_never_replaced(source, data, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("years of work")
    settings = replace(QUICK, qat="int8", max_steps=1, evaluate_during_training=False)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match=f"{name} exists, and lowbit did not write it"):
            train("glue", material(source, data), tmp_path, settings, progress=False, **options)
    assert (tmp_path / name / "mine.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_a_killed_training_left_empty_is_its_own(source, data, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    settings = replace(QUICK, max_steps=1, evaluate_during_training=False)
    train("glue", material(source, data), tmp_path, settings, resume=True, progress=False)
    assert (tmp_path / "training.json").exists()


def test_label_smoothing_of_a_regression_is_refused(source, data, tmp_path):
    folder = tmp_path / "STS-B"
    folder.mkdir()
    for split in ("train", "dev"):
        lines = ["sentence1\tsentence2\tscore", "a b\tb c\t2.5", "a\tc\t1.0"]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    lesson = replace(material(source, folder), subset="stsb")
    settings = replace(QUICK, label_smoothing=0.1)
    with pytest.raises(UsageError, match=r"label_smoothing is 0.1, but this task"):
        train("glue", lesson, tmp_path / "out", settings, progress=False)
    assert not (tmp_path / "out").exists()


def test_batches_that_make_one_step_weigh_like_one_batch(source, data, tmp_path):
    """The share of distillation too."""
    lesson = replace(material(source, data), dropout=0.0)
    quiet = replace(QUICK, max_steps=10, evaluate_during_training=False)
    train("glue", lesson, tmp_path / "teacher", quiet, progress=False)
    lesson = replace(lesson, model=str(tmp_path / "teacher" / "float"))
    logged = []
    for size in (16, 4):
        # Rounded, it is away from the teacher, so that both parts of the loss have gradients.
        # Static ranges would depend on the size of a batch.
        settings = replace(quiet, seed=4, qat="int4-dynamic", distill=0.5, learning_rate=5e-4)
        settings = replace(settings, batch_size=size, accumulate=16 // size)
        out = tmp_path / str(size)
        state = train("glue", lesson, out, settings, progress=False)
        line, _ = state.history
        logged.append((line["step"], line["loss"], line["grad_norm"]))
    assert logged[1] == pytest.approx(logged[0], rel=0.05)


def test_rounding_that_never_began_is_said(source, data, tmp_path):
    settings = replace(
        QUICK, qat="int8", max_steps=2, evaluate_during_training=False,
        options=QatOptions(start=2),
    )  # fmt: skip
    outcome = train("glue", material(source, data), tmp_path, settings, progress=False)
    assert "start at random" in outcome.notes[0] and "classifier.weight" in outcome.notes[0]
    _, note = outcome.notes
    assert "never trained with rounding: it was to start after 2 passes, and there were 2" in note


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0 and finite, not -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be .*, not nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be .*, not inf"),
        ({"seed": -1}, "seed must be at least 0 and finite, not -1"),
        ({"epochs": 0.0}, "epochs must be more than 0 and finite, not 0.0"),
        ({"epochs": float("inf")}, "epochs must be .*, not inf"),
        ({"warmup": 1.0}, "warmup 1.0 is not a share from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing -0.1 is not a share"),
        ({"schedule": "luck"}, "schedule 'luck' is unknown"),
        ({"distill": 1.5}, "1.5 of the loss is outside"),
    ],
)
def test_settings_that_cannot_be(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        Settings(**given)


def test_a_loss_that_is_no_number_stops_with_a_sentence(source, data, tmp_path):
    settings = replace(QUICK, learning_rate=1e30, save_steps=1, evaluate_during_training=False)
    with pytest.raises(InputError, match="the loss is (nan|inf) at step .*last good checkpoint is"):
        train("glue", material(source, data), tmp_path, settings, progress=False)


def test_weights_and_logits_that_are_no_numbers_stop_with_the_step_too(source, data, tmp_path):
    settings = replace(QUICK, learning_rate=1e30, max_steps=2, eval_steps=2)
    with pytest.raises(InputError, match="not finite at step 2: .*no checkpoint was saved yet"):
        train("glue", material(source, data), tmp_path / "scored", settings, progress=False)
    settings = replace(QUICK, learning_rate=3e38, weight_decay=1e9, warmup=0.0, max_steps=1)
    with pytest.raises(InputError, match="is not finite at step 1: .*no checkpoint was saved yet"):
        train("glue", material(source, data), tmp_path / "saved", settings, progress=False)
    assert not checkpoints(tmp_path / "saved")
    settings = replace(settings, qat="int8-all", max_steps=2, weight_decay=0.0, learning_rate=1e38)
    with pytest.raises(InputError, match="NaN or infinite in float32 at step 2: a smaller"):
        train("glue", material(source, data), tmp_path / "rounded", settings, progress=False)
    codes = replace(settings, qat="none", plan=BcqPlan(load_recipe("bcq3"), every=1))
    with pytest.raises(InputError, match="NaN or infinite in float32 at step 1: a smaller"):
        train("glue", material(source, data), tmp_path / "coded", codes, progress=False)


@pytest.mark.parametrize("part", [0.1, 1.1])
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(
    source, data, tmp_path, monkeypatch, part
):
    """No file may grow past a limit from the third step on: the system's own refusal, of the
    model's file or of its optimizer's, which is twice as long."""
    limit = int(part * (source / "model.safetensors").stat().st_size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = LessonTrainer.training_step

    def filling(trainer, *args, **kwargs):
        if trainer.state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(LessonTrainer, "training_step", filling)
    settings = replace(QUICK, save_steps=2, evaluate_during_training=False)
    try:
        with pytest.raises(InputError, match="ulimit -f.* good checkpoint is .*-2$"):
            train("glue", material(source, data), tmp_path, settings, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "training.json").exists()


def test_an_output_that_is_there_is_not_touched(source, data, tmp_path):
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(UsageError, match="finished before: --resume continues"):
        train("glue", material(source, data), tmp_path, QUICK, progress=False)


def test_starting_again_leaves_no_old_checkpoint_to_resume_from(source, data, tmp_path):
    old = tmp_path / "checkpoints" / "checkpoint-900"
    old.mkdir(parents=True)
    (old / "trainer_state.json").write_text("{}")
    (old.parent / "settings.json").write_text("{}")
    with pytest.raises(UsageError, match="begun before"):
        train("glue", material(source, data), tmp_path, QUICK, progress=False)
    settings = replace(QUICK, max_steps=1, evaluate_during_training=False)
    given = {"overwrite": True, "progress": False, "keep_checkpoints": True}
    train("glue", material(source, data), tmp_path, settings, **given)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("task", "settings", "sentence"),
    [
        ("grue", QUICK, "task 'grue' is unknown; did you mean glue"),
        ("glue", Settings(qat="int9"), "qat 'int9' is unknown"),
        ("glue", Settings(plan=BcqPlan(Recipe((), "../x"))), "'../x' cannot name a folder"),
        ("glue", Settings(plan=BcqPlan(Recipe((), "float"))), "'float' cannot name a folder"),
        ("squad", QUICK, "holds no file"),
        ("language", QUICK, "train.txt"),
        (
            "glue",
            replace(QUICK, distill=0.5),
            "nothing to distill: 2 parameters .* classifier.bias",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(source, data, tmp_path, task, settings, sentence):
    with pytest.raises((UsageError, InputError), match=sentence):
        train(task, material(source, data), tmp_path, settings, progress=False)


def test_the_folder_of_a_recipe_file_has_the_recipes_name(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(replace(PRESETS["int8-static"], name="mine").to_dict()))
    assert Settings(qat=str(file)).folder == "mine"


def regression_data(folder, score):
    """STS-B's layout; score: of a row's number."""
    folder.mkdir()
    rows = (
        f"{i % 7}\tgood {WORDS[0][i % 4]}\t{WORDS[i % 2][i % 3]}\t{score(i):.1f}" for i in range(24)
    )
    text = "\n".join(["index\tsentence1\tsentence2\tscore", *rows]) + "\n"
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text(text)
    return str(folder)


def test_scores_are_those_of_float32_though_training_was_in_bfloat16(source, tmp_path, monkeypatch):
    """Of a regression, whose predictions show every digit."""
    monkeypatch.setattr(bfloat16, "has_products", lambda: True)
    data = regression_data(tmp_path / "STS-B", lambda row: row % 5)
    tokenizer = load_tokenizer(source)
    lesson = Material(str(source), tokenizer, data, "stsb", max_length=16)
    settings = replace(QUICK, epochs=1, bf16=True)
    found = train("glue", lesson, tmp_path / "out", settings, progress=False)
    task = Glue(data, "stsb", max_length=16)
    again = task.measure(Subject("float", load_model(tmp_path / "out/float"), tokenizer))
    assert found.measurements["float"].predictions == again.predictions


def test_bfloat16_is_not_emulated(source, data, tmp_path, monkeypatch):
    """A processor that lacks its products trains in float32, and the user is told."""
    monkeypatch.setattr(bfloat16, "has_products", lambda: False)
    settings = replace(QUICK, max_steps=1, bf16=True)
    found = train("glue", material(source, data), tmp_path / "out", settings, progress=False)
    assert any("no bfloat16 products" in note for note in found.notes)
    assert not arguments(tmp_path, settings, None, False).bf16
    monkeypatch.setattr(bfloat16, "has_products", lambda: True)
    assert arguments(tmp_path, settings, None, False).bf16


@pytest.mark.slow
def test_what_is_distilled_comes_from_the_teacher_alone(source, data, tmp_path):
    """With labels that say the contrary, of classes and of a regression."""
    teacher = tmp_path / "teacher"
    quiet = replace(QUICK, evaluate_during_training=False)
    floats = train("glue", material(source, data), teacher, quiet, progress=False)
    turned = tmp_path / "SST-2"
    turned.mkdir()
    for split in ("train", "dev"):
        lines = (data / f"{split}.tsv").read_text().splitlines()
        told = [f"{line[:-1]}{1 - int(line[-1])}" for line in lines[1:]]
        (turned / f"{split}.tsv").write_text("\n".join([lines[0], *told]) + "\n")
    settings = replace(quiet, qat="int8", epochs=1, distill=1.0)
    lesson = material(teacher / "float", turned)
    found = train("glue", lesson, tmp_path / "classes", settings, progress=False)
    assert found.measurements["integer"].predictions == floats.measurements["float"].predictions

    teacher = tmp_path / "scores"
    known = regression_data(tmp_path / "known", lambda row: 4.0 * (row % 2))
    settings = replace(quiet, epochs=40)
    lesson = Material(str(source), load_tokenizer(source), known, "stsb", max_length=16)
    floats = train("glue", lesson, teacher, settings, progress=False)
    wrong = regression_data(tmp_path / "wrong", lambda row: 4.0 * ((row + 1) % 2))
    before = torch.tensor(floats.measurements["float"].predictions)
    lesson = replace(lesson, model=str(teacher / "float"), data=wrong)
    far = {}
    for share in (0.0, 1.0):
        settings = replace(quiet, qat="int8", learning_rate=5e-4, epochs=10, distill=share)
        found = train("glue", lesson, tmp_path / str(share), settings, progress=False)
        after = torch.tensor(found.measurements["integer"].predictions)
        far[share] = float((after - before).abs().max())
    assert before.std() >= 1.5 and far[1.0] <= 0.5 and far[0.0] >= 2, far


def test_a_model_that_names_the_labels_keeps_its_order_of_them(source, data, tmp_path):
    turned = load_model(source)
    turned.config.id2label = {0: "Positive", 1: "Negative"}
    turned.save_pretrained(tmp_path)
    lesson = teach(replace(material(source, data), model=str(tmp_path)))
    assert lesson.model.config.id2label == {0: "positive", 1: "negative"}
    assert not lesson.other_labels
    for example, line in zip(
        lesson.examples, (data / "train.tsv").read_text().split("\n")[1:], strict=False
    ):
        assert example["labels"] == 1 - int(line[-1])
    lesson = teach(material(source, data))
    assert lesson.model.config.id2label == {0: "negative", 1: "positive"}


def test_a_model_of_other_labels_is_trained_and_not_distilled(source, data, tmp_path):
    model = BertForSequenceClassification(BertConfig(**BERT))
    model.config.id2label = {0: "entailment", 1: "not_entailment"}
    model.save_pretrained(tmp_path / "rte")
    given = replace(material(source, data), model=str(tmp_path / "rte"))
    settings = replace(QUICK, distill=0.5)
    with pytest.raises(UsageError, match="the labels entailment, not_entailment, and .* negative"):
        train("glue", given, tmp_path / "out", settings, progress=False)
    assert teach(given).other_labels == ("entailment", "not_entailment")


def test_another_number_of_labels_makes_a_new_head_on_the_same_model(source, tmp_path):
    three = BertForSequenceClassification(BertConfig(**BERT, num_labels=3))
    three.save_pretrained(tmp_path)
    start = Material(str(tmp_path), load_tokenizer(source), None)
    loaded = load_with_head(
        AutoModelForSequenceClassification, start, ("no", "yes"), trained_for={}
    )
    two = loaded.model
    assert loaded.new == ("classifier.bias", "classifier.weight")
    assert two.classifier.weight.shape == (2, BERT["hidden_size"])
    kept = three.bert.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in two.bert.state_dict().items())
    config = json.loads((tmp_path / "config.json").read_text()) | {"intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"bert.encoder.* has the shape \[192"):
        load_with_head(AutoModelForSequenceClassification, start, ("no", "yes"), trained_for={})


@pytest.mark.parametrize(
    ("kind", "of_attention"),
    [("bert", "self.dropout"), ("gpt2", "attn_dropout"), ("distilbert", "attention.dropout")],
)
def test_dropout_is_the_one_asked_for(tmp_path, kind, of_attention):
    save(kind, tmp_path)
    start = Material(str(tmp_path), load_tokenizer(tmp_path), None, dropout=0.3)
    model = load_with_head(AutoModelForSequenceClassification, start, trained_for={}).model
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert 0.3 in found.values()
    assert found == {name: 0.0 if name.endswith(of_attention) else 0.3 for name in found}
    with pytest.raises(UsageError, match="dropout 1.5 is outside"):
        replace(start, dropout=1.5)


def test_a_quantized_model_is_not_trained(source, data, tmp_path):
    model = make("bert")
    lowbit.quantize(model, "int8")
    model.save_pretrained(tmp_path / "q")
    taught = replace(material(source, data), model=str(tmp_path / "q"))
    with pytest.raises(UsageError, match="only float models are trained"):
        train("glue", taught, tmp_path / "out", QUICK, progress=False)


@pytest.mark.slow
def test_a_language_model_learns_a_text(tmp_path):
    source = save("gpt2", tmp_path / "gpt2")
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("one two three four five six seven. " * 60)
    taught = Material(str(source), load_tokenizer(source), str(tmp_path), max_length=32)
    settings = Settings(
        qat="int8", learning_rate=3e-3, max_steps=40, batch_size=8, evaluate_during_training=False
    )
    outcome = train("language", taught, tmp_path / "out", settings, progress=False)
    values = [m.metrics["perplexity"].value for m in outcome.measurements.values()]
    assert values[0] < 20 and abs(values[1] / values[0] - 1) < 1e-3


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from lowbit.qat.prepare import QatOptions
from lowbit.training import train as module
from tests.training.test_train import QUICK, material
source, data, out, batch = sys.argv[1:]
settings = replace(
    QUICK,
    qat="int8",
    epochs=2,
    batch_size=int(batch),
    evaluate_during_training=False,
    options=QatOptions(ranges="learned"),
)
learn = module.learn
def learned(trainer, checkpoint):
    seconds = learn(trainer, checkpoint)
    scales = torch.stack([scale.detach() for scale in trainer.learned_scales])
    of_first = scales.clone()
    if trainer.args.world_size > 1:
        torch.distributed.broadcast(of_first, 0)
    assert torch.equal(scales, of_first), (scales, of_first)
    return seconds
module.learn = learned
module.train("glue", material(source, data), Path(out), settings, progress=False)
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(source, data, tmp_path):
    """The same global batch, in other batches: scores are alike, not weights."""
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--master-port", "29517"]
    scores = []
    for processes, batch in ((1, 16), (2, 8)):
        out = tmp_path / f"out{processes}"
        arguments = [tmp_path / "run.py", source, data, out, batch]
        done = subprocess.run(
            [*launch, f"--nproc-per-node={processes}", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads((out / "training.json").read_text())
        scores.append(told["measurements"]["integer"]["metrics"]["accuracy"]["value"])
        assert told["steps"] == 20
    assert abs(scores[0] - scores[1]) <= 0.1
