import json
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread

from lowbit import InputError, UsageError
from lowbit.demo import Settings, run
from lowbit.demo.cache import DIGESTS, cache_folder, fingerprint, intact, trained
from lowbit.demo.chain import RECIPES
from lowbit.demo.corpus import documentation
from lowbit.demo.train import batches, rate

TINY = Settings(
    steps=3, batch=2, vocabulary=512, context=96, width=64, layers=1, heads=2, corpus_limit=120_000
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_little_time(cache, monkeypatch):
    monkeypatch.setenv("LOWBIT_CACHE", str(cache))
    monkeypatch.setattr("lowbit.demo.chain.NEW_TOKENS", 4)


@pytest.fixture(scope="module")
def report(cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_CACHE", str(cache))
        patch.setattr("lowbit.demo.chain.NEW_TOKENS", 4)
        picture = tmp_path_factory.mktemp("out") / "demo.png"
        return run(picture, TINY, retrain=True, progress=False)


def test_there_is_a_row_for_float_and_for_each_recipe(report):
    assert [row.recipe for row in report.rows] == ["float32", *RECIPES]
    assert not report.from_cache and report.held_out_tokens > 100
    for row in report.rows:
        assert row.sample.startswith(report.prompt)
        assert 0 < row.tokens_per_second < math.inf
        assert 1 < row.perplexity < math.inf


def test_the_float_row_is_what_the_others_are_compared_with(report):
    first, *others = report.rows
    assert (first.bits_per_weight, first.reduction, first.mean_squared_error) == (32, 1, 0)
    assert first.perplexity_change == 0 and first.kernels == ()
    assert first.stored_bytes == 4 * report.parameters
    for row in others:
        assert row.perplexity_change == pytest.approx(row.perplexity / first.perplexity - 1)
        assert row.reduction == pytest.approx(first.stored_bytes / row.stored_bytes)
        assert row.bits_per_weight == pytest.approx(32 / row.reduction)
        assert row.kernels


def test_fewer_bits_are_smaller_and_further_from_the_float_weights(report):
    rows = {row.recipe: row for row in report.rows}
    eight, four, three = (rows[name] for name in ("int8-all", "int4-all", "bcq3-all"))
    assert eight.stored_bytes > four.stored_bytes > three.stored_bytes
    assert 0 < eight.mean_squared_error < four.mean_squared_error < three.mean_squared_error


def test_the_report_is_plain_json(report):
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [row["recipe"] for row in again["rows"]] == ["float32", *RECIPES]
    assert again["picture"].endswith("demo.png")


def test_the_kernels_in_use_are_named_honestly(report):
    used = {kernel for row in report.rows for kernel in row.kernels}
    on_reference = all(kernel.startswith("reference") for kernel in used)
    assert ("PyTorch reference" in report.kernels) == on_reference


def test_the_picture_is_a_picture(report):
    pixels = imread(report.picture)
    height, width, _ = pixels.shape
    assert 600 < height < 3000 and 800 < width < 3000
    # Neither blank nor all ink.
    assert 0.02 < (pixels[..., :3].min(axis=-1) < 0.95).mean() < 0.6


def test_a_second_run_trains_nothing_and_finds_the_same(report, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.demo.cache.train", None)
    again = run(tmp_path / "again.png", TINY, progress=False)
    assert again.from_cache and again.model == report.model
    for row, other in zip(report.rows, again.rows, strict=True):
        assert row == replace(other, tokens_per_second=row.tokens_per_second)


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
    with pytest.raises(InputError, match=r"file cannot be written"):
        trained(TINY, progress=False)


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [("demo.jpg", r"must end in \.png"), ("absent/demo.png", "no such folder"), ("", "end in")],
)
def test_a_picture_that_cannot_be_written_is_refused_before_training(
    picture, sentence, tmp_path, monkeypatch
):
    monkeypatch.setattr("lowbit.demo.chain.trained", None)
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path / picture, TINY, progress=False)


def test_no_steps_are_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="0 steps train nothing"):
        run(tmp_path / "demo.png", replace(TINY, steps=0), progress=False)


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
    rows = {row.recipe: row for row in run(tmp_path / "demo.png", settings, progress=False).rows}
    assert rows["float32"].perplexity < 400
    assert abs(rows["int8-all"].perplexity_change) < 0.01
    assert rows["bcq3-all"].perplexity_change > rows["int8-all"].perplexity_change
