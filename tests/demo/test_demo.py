import io
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lowbit import InputError, UsageError
from lowbit.cli.demo import comparison_table, kernel_lines
from lowbit.cli.screen import Screen
from lowbit.demo import DemoSettings, run
from lowbit.demo.cache import DIGESTS, cache_folder, fingerprint, intact, trained
from lowbit.demo.chain import RECIPES
from lowbit.demo.corpus import documentation
from lowbit.demo.train import batches, rate
from lowbit.evaluation.latency import Shape
from lowbit.evaluation.study import Study

TINY = DemoSettings(
    steps=3, batch=2, vocabulary=512, context=96, width=64, layers=1, heads=2, corpus_limit=120_000
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def report(cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_CACHE", str(cache))
        patch.setattr("lowbit.demo.chain.NEW_TOKENS", 4)
        patch.setattr("lowbit.demo.chain.SHAPE", Shape(1, 4, 4))
        output = tmp_path_factory.mktemp("out") / "demo.html"
        return run([output], TINY, retrain=True, progress=False)


@pytest.fixture(autouse=True)
def _in_little_time(cache, monkeypatch):
    monkeypatch.setenv("LOWBIT_CACHE", str(cache))
    monkeypatch.setattr("lowbit.demo.chain.NEW_TOKENS", 4)
    monkeypatch.setattr("lowbit.demo.chain.SHAPE", Shape(1, 4, 4))


def perplexity(model):
    return model.measurements[0].metrics["perplexity"].value


def test_there_is_a_record_of_float_and_of_each_recipe(report):
    models = report.study.models
    assert [model.name for model in models] == ["float32", *RECIPES]
    assert not report.from_cache and models[0].measurements[0].items > 100
    for model in models:
        assert model.measurements[1].samples[0].output.startswith("Return a new")
        assert 0 < model.timings[0].tokens_per_second < math.inf
        assert 1 < perplexity(model) < math.inf


def test_fewer_bits_are_smaller_and_further_from_the_float_model(report):
    models = {model.name: model for model in report.study.models}
    assert models["float32"].bits_per_weight == 32
    eight, four, three = (models[name] for name in ("int8-all", "int4-all", "bcq3-all"))
    assert eight.stored_bytes > four.stored_bytes > three.stored_bytes
    errors = [max(m.relative_error or 0 for m in model.modules) for model in (eight, four, three)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_report_is_a_page_of_all_models_with_their_pictures(report):
    [page] = report.outputs
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "<svg" in text
    assert all(name in text for name in RECIPES)
    assert Study.from_dict(report.to_dict()["study"]) == report.study


def test_a_terminal_of_80_columns_shows_all_numbers(report):
    screen = Screen(file=io.StringIO(), width=80)
    screen.print(comparison_table(report.study))
    shown = screen.file.getvalue()
    assert "…" not in shown and all(name in shown for name in RECIPES)


def test_a_second_run_trains_nothing_and_finds_the_same(report, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.demo.cache.train", None)
    again = run([tmp_path / "again.json"], TINY, progress=False)
    assert again.from_cache and again.model == report.model
    for model, other in zip(report.study.models, again.study.models, strict=True):
        assert model == replace(other, timings=model.timings)


def test_a_damaged_cache_is_trained_again(report):
    before = {file.name: file.read_bytes() for file in report.model.iterdir()}
    (report.model / "model.safetensors").write_bytes(before["model.safetensors"][:-100])
    assert not intact(report.model)
    assert not trained(TINY, progress=False).from_cache
    assert intact(report.model)
    (report.model / "tokenizer.json").unlink()
    assert not intact(report.model)
    (report.model / DIGESTS).write_text("{")
    assert not intact(report.model)
    trained(TINY, progress=False)
    after = {file.name: file.read_bytes() for file in report.model.iterdir()}
    assert after == before
    assert [folder.name for folder in cache_folder().iterdir()] == [report.model.name]


def test_settings_have_caches_of_their_own():
    assert fingerprint(TINY) != fingerprint(replace(TINY, steps=4))


def test_the_cache_is_where_the_user_or_the_platform_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOWBIT_CACHE", "/chosen")
    assert str(cache_folder()) == "/chosen"
    monkeypatch.delenv("LOWBIT_CACHE")
    assert cache_folder() == tmp_path / "lowbit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lowbit"


def test_a_cache_that_cannot_be_written_is_refused_before_training(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("LOWBIT_CACHE", str(file))
    monkeypatch.setattr("lowbit.demo.cache.train", None)
    with pytest.raises(InputError, match=r"file cannot be created"):
        trained(TINY, progress=False)


@pytest.mark.parametrize("name", ["demo.jpg", "absent/demo.html", "demo"])
def test_a_report_that_cannot_be_written_is_refused_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.demo.chain.trained", None)
    with pytest.raises(UsageError, match="demo"):
        run([tmp_path / name], TINY, progress=False)


def test_no_steps_are_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="steps must be at least 1, not 0"):
        run([tmp_path / "demo.html"], replace(TINY, steps=0), progress=False)


def test_the_text_is_the_same_each_time_and_nothing_held_out_is_trained_on():
    corpus = documentation(300_000)
    assert corpus == documentation(300_000)
    assert 250_000 < sum(map(len, corpus.train + corpus.held_out)) < 2_000_000
    trained_on = {piece for document in corpus.train for piece in document.split("\n\n")}
    for document in corpus.held_out:
        pieces = document.split("\n\n")
        assert sum(piece in trained_on for piece in pieces) < len(pieces) / 2


def test_a_python_without_its_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="has 0 characters of documentation; the demo needs"):
        documentation()


def test_an_epoch_takes_every_piece_of_the_text_once():
    ids = torch.arange(20 * TINY.context + 1)
    settings = replace(TINY, steps=10, batch=2)
    taken = torch.cat(list(batches(ids, settings)))
    assert taken.shape == (20, TINY.context + 1)
    assert sorted(taken[:, 0].tolist()) == list(range(0, 20 * TINY.context, TINY.context))
    assert torch.equal(taken.diff(dim=1), torch.ones(20, TINY.context, dtype=torch.long))


def test_the_learning_rate_rises_then_falls():
    rates = [rate(step, 400) for step in range(400)]
    assert rates[0] < 0.1 and max(rates) == 1 and rates[-1] < 0.06
    assert rates == [*sorted(rates[:40]), *sorted(rates[40:], reverse=True)]


@pytest.mark.slow
def test_a_properly_trained_model_survives_eight_bits(tmp_path):
    settings = replace(TINY, steps=150, batch=8, vocabulary=1024, width=128, corpus_limit=400_000)
    models = run([tmp_path / "demo.html"], settings, progress=False).study.models
    found = {model.name: perplexity(model) for model in models}
    assert found["float32"] < 400
    assert abs(found["int8-all"] / found["float32"] - 1) < 0.01
    assert found["bcq3-all"] > found["int8-all"]


def test_layers_of_one_kernel_are_told_apart_by_the_reason():
    modules = [SimpleNamespace(kernel="avx512", why=why) for why in ("", "no VNNI", "no VNNI")]
    study = SimpleNamespace(models=[SimpleNamespace(name="int4", kernels=(), modules=modules)])
    assert list(kernel_lines(study)) == ["int4, layers: 1 by avx512, 2 by avx512 (no VNNI)"]
