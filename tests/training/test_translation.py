"""Translators from nothing, trained in float and in binary codes."""

import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import M2M100Config, M2M100ForConditionalGeneration, trainer

import lowbit
from lowbit import InputError, UsageError
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.decoding.translator import Translator
from lowbit.evaluation.teacher_forcing import forced
from lowbit.fallbacks import SlowPathWarning
from lowbit.formats import FORMATS
from lowbit.training import bfloat16
from lowbit.training.bcq import find_plan
from lowbit.training.lesson import Pairs
from lowbit.training.train import train
from lowbit.training.trainer import checkpoints, freeze_what_is_not_saved
from lowbit.training.translation import new_tokenizer, teach
from tests.training import reversing
from tests.training.reversing import QUICK


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return reversing.write(tmp_path_factory.mktemp("data"))


def value(outcome, model, name):
    return outcome.measurements[model].metrics[name].value


@pytest.mark.parametrize("kind", ["marian", "bart"])
def test_a_short_training_keeps_its_best_checkpoint_and_writes_texts(
    data, tmp_path, kind, monkeypatch
):
    said = []
    monkeypatch.setattr(trainer.logger, "warning", said.append)
    material = reversing.material(data)
    material = replace(material, model=replace(material.model, kind=kind))
    settings = replace(QUICK, eval_steps=10, label_smoothing=0.1, schedule="inverse_sqrt")
    outcome = train("translation", material, tmp_path, settings, progress=False)
    assert not said  # such as that tied weights are missing in the best checkpoint
    names = ["bleu", "chrf", "exact_match", "loss", "accuracy"]
    assert list(outcome.measurements["float"].metrics) == names
    scored = [line["eval_bleu"] for line in outcome.history if "eval_bleu" in line]
    assert len(scored) == 3 and value(outcome, "float", "bleu") == pytest.approx(max(scored))
    losses = [line["loss"] for line in outcome.history if "loss" in line]
    assert losses[-1] < losses[0]
    texts = {file.stem: file.read_text().splitlines() for file in (tmp_path / "texts").iterdir()}
    sources, references = zip(*reversing.pairs(40, 1), strict=True)
    assert texts["sources"] == list(sources) and texts["references"] == list(references)
    assert texts["float"] == list(outcome.measurements["float"].predictions)
    assert outcome.measurements["float"].samples[0].reference == references[0]


def test_what_is_trained_in_bfloat16_is_scored_as_it_is_saved(data, tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "has_products", lambda: True)
    settings = replace(QUICK, max_steps=4, eval_steps=4, bf16=True)
    with warnings.catch_warnings():
        # The attention that steps are trained with would make scoring slow.
        warnings.simplefilter("error", SlowPathWarning)
        outcome = train("translation", reversing.material(data), tmp_path, settings, progress=False)
    while_training = [line["eval_loss"] for line in outcome.history if "eval_loss" in line]
    sources, targets = zip(*reversing.pairs(40, 1), strict=True)
    saved = load_model(tmp_path / "float")
    wanted = forced(saved, load_tokenizer(tmp_path / "float"), sources, targets).loss
    # bfloat16 would be off by a thousandth.
    assert [*while_training, value(outcome, "float", "loss")] == pytest.approx([wanted] * 2, 1e-6)


def test_a_training_towards_integers_warns_of_nothing_that_its_user_could_change(data, tmp_path):
    settings = replace(QUICK, max_steps=2, eval_steps=1, qat="int8-all")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        train("translation", reversing.material(data), tmp_path, settings, progress=False)


def test_loss_and_accuracy_are_those_of_one_pair_at_a_time(data):
    lesson = teach(reversing.material(data))
    sources, targets = lesson.score.pairs.sources[:6], lesson.score.pairs.targets[:6]
    model = lesson.model.eval()
    total, right, tokens = 0.0, 0, 0
    for source, target in zip(sources, targets, strict=True):
        ids = torch.tensor([lesson.tokenizer(source).input_ids])
        labels = lesson.tokenizer(target).input_ids
        before = torch.tensor([[model.config.decoder_start_token_id, *labels[:-1]]])
        with torch.no_grad():
            log_p = (
                model(input_ids=ids, decoder_input_ids=before).logits[0].double().log_softmax(-1)
            )
        total -= sum(log_p[at, label].item() for at, label in enumerate(labels))
        right += sum(int(log_p[at].argmax()) == label for at, label in enumerate(labels))
        tokens += len(labels)
    found = forced(model, lesson.tokenizer, [*sources, ""], [*targets, ""], batch_size=4)
    assert found.loss == pytest.approx(total / tokens, rel=1e-5)
    assert (found.accuracy, found.tokens) == (right / tokens, tokens)


def test_a_model_that_makes_its_decoders_inputs_from_labels_is_scored_and_trained(data, tmp_path):
    tokenizer = reversing.material(data).tokenizer
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(config).eval()
    assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    sources, targets = zip(*reversing.pairs(5, 2), strict=True)
    total, count = 0.0, 0
    for source, target in zip(sources, targets, strict=True):
        labels = torch.tensor([tokenizer(text_target=target).input_ids])
        with torch.no_grad():
            loss = model(**tokenizer(source, return_tensors="pt"), labels=labels).loss
        total, count = total + loss.item() * labels.numel(), count + labels.numel()
    found = forced(model, tokenizer, sources, targets, batch_size=3)
    assert found.tokens == count and found.loss == pytest.approx(total / count, rel=1e-5)

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = replace(QUICK, max_steps=2, label_smoothing=0.1, distill=0.5)
    lesson = reversing.material(data, str(tmp_path / "model"))
    outcome = train("translation", lesson, tmp_path / "out", settings, progress=False)
    assert outcome.steps == 2 and value(outcome, "float", "loss") > 0


@pytest.mark.slow
def test_words_are_reversed_in_three_bits(tmp_path):
    """The whole way: float, then codes with straight-through gradients, frozen in the end."""
    data = reversing.write(tmp_path / "data", train=2000, valid=60, longest=5)
    settings = replace(QUICK, max_steps=600, batch_size=64, evaluate_during_training=False)
    floats = train(
        "translation", reversing.material(data), tmp_path / "a", settings, progress=False
    )
    plan = find_plan("3", {"granularity": "channel", "every": 40, "nested": True})
    settings = replace(settings, plan=plan, learning_rate=1.5e-3, max_steps=160, distill=0.3)
    material = reversing.material(data, str(tmp_path / "a" / "float"))
    outcome = train("translation", material, tmp_path / "b", settings, progress=False)
    assert value(floats, "float", "accuracy") > 0.9
    assert value(outcome, "integer", "accuracy") > 0.9
    assert value(outcome, "integer", "agreement") == 1

    # Stored codes and the float model beside them are one model, bit for bit.
    integer, dense = load_model(tmp_path / "b" / "bcq3-all"), load_model(tmp_path / "b" / "float")
    weights = dict(dense.named_parameters())
    packed = {n: m for n, m in integer.named_modules() if hasattr(m, "stored_weight")}
    assert len(packed) == 20
    for name, module in packed.items():
        decoded = FORMATS["binary"].decode(module.stored_weight)
        owner = name if f"{name}.weight" in weights else "model.shared"
        assert torch.equal(decoded, weights[f"{owner}.weight"]), name

    # Read again it writes the same, with its cache and without.
    tokenizer = load_tokenizer(tmp_path / "b" / "bcq3-all")
    sources, _ = zip(*reversing.pairs(60, 1, 5), strict=True)
    translator = Translator(integer, tokenizer)
    found = translator(sources, progress=False)
    assert found.outputs == outcome.measurements["integer"].predictions
    batch = tokenizer(list(sources[:8]), padding=True, return_tensors="pt")
    cached, whole = (
        integer.generate(**batch, max_new_tokens=12, use_cache=use).tolist()
        for use in (True, False)
    )
    assert cached == whole

    lowbit.use_planes(integer, 2)
    assert translator(sources, progress=False).outputs != found.outputs


@pytest.mark.slow
def test_a_few_steps_towards_a_clustered_table(data, tmp_path):
    plan = find_plan("bcq-clustered", {"every": 3, "frozen": 0.4})
    settings = replace(QUICK, plan=plan, max_steps=8, evaluate_during_training=False)
    outcome = train("translation", reversing.material(data), tmp_path, settings, progress=False)
    assert value(outcome, "integer", "agreement") == 1
    integer, dense = load_model(tmp_path / "bcq-clustered"), load_model(tmp_path / "float")
    table = integer.model.shared.stored_weight
    assert [(part.shape[0], part.bits) for part in table.parts] == [
        (69, 4),
        (68, 3),
        (69, 2),
        (68, 1),
    ]
    assert torch.equal(lowbit.dequantize(table), dense.model.shared.weight)
    assert integer.lm_head.tied_to is integer.model.shared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "bcq-clustered"])
def test_resuming_towards_codes_gives_the_weights_of_a_training_that_was_not_stopped(
    data, name, tmp_path
):
    quiet = replace(QUICK, max_steps=20, evaluate_during_training=False)
    train("translation", reversing.material(data), tmp_path / "start", quiet, progress=False)
    material = reversing.material(data, str(tmp_path / "start" / "float"))
    plan = find_plan(name, {"every": 4, "phases": True, "frozen": 0.3, "granularity": "channel"})
    settings = replace(quiet, plan=plan, save_steps=5, distill=0.5)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for output in (whole, stopped):
        train("translation", material, output, settings, progress=False, keep_checkpoints=True)
    (stopped / "training.json").unlink()
    (checkpoints(stopped)[-1] / "trainer_state.json").unlink()
    assert checkpoints(stopped)[-1].name == "checkpoint-15"
    train("translation", material, stopped, settings, resume=True, progress=False)
    for folder in ("float", plan.recipe.name):
        one, other = (load_file(run / folder / "model.safetensors") for run in (whole, stopped))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_parameters_that_are_not_saved_are_not_trained(data, tmp_path):
    model = teach(reversing.material(data)).model
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    freeze_what_is_not_saved(again)
    saved = load_file(tmp_path / "model.safetensors").keys()
    tied = again.all_tied_weights_keys.keys()
    lost = [n for n, p in again.named_parameters() if n not in saved and n not in tied]
    assert lost and not any(again.get_parameter(name).requires_grad for name in lost)


def test_pairs_that_are_not_learned_from_are_told(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "valid.tsv").write_text((data / "valid.tsv").read_text())
    lines = (data / "train.tsv").read_text() + "ba bo\t\n" + "ba " * 30 + "\tba\n"
    (folder / "train.tsv").write_text(lines)
    lesson = teach(reversing.material(folder))
    assert len(lesson.examples) == 400
    assert lesson.notes == (
        "pairs left out of 402 for an empty side: 1",
        "pairs left out of 402 for more than 16 tokens: 1",
    )


def test_pairs_longer_than_the_models_positions_are_left_out(data, tmp_path):
    lesson = teach(reversing.material(data))
    lesson.model.save_pretrained(tmp_path)
    long = " ".join(["ba"] * 40)
    (tmp_path / "train.tsv").write_text((data / "train.tsv").read_text() + f"{long}\tba\n")
    material = reversing.material(data, str(tmp_path))
    again = teach(
        replace(
            material,
            data=str(tmp_path / "train.tsv"),
            max_length=128,
            pairs=Pairs(valid=str(data / "valid.tsv")),
        )
    )
    assert again.notes == ("pairs left out of 401 for more than 16 tokens: 1",)


def test_checkpoints_between_evaluations_are_refused_where_the_best_is_kept(data, tmp_path):
    settings = replace(QUICK, eval_steps=10, save_steps=5)
    with pytest.raises(UsageError, match="save_steps is 5, but this task keeps the best"):
        train("translation", reversing.material(data), tmp_path, settings, progress=False)


def test_data_that_cannot_be_used(data, tmp_path):
    train_file, other = str(data / "train.tsv"), tmp_path / "short.txt"
    with pytest.raises(UsageError, match="translation needs --data"):
        new_tokenizer(None, Pairs(), 300, 16)
    with pytest.raises(UsageError, match="train.tsv is one file: --valid names the one"):
        new_tokenizer(train_file, Pairs(), 300, 16)
    with pytest.raises(UsageError, match="give two files for scoring if training has two"):
        new_tokenizer(train_file, Pairs(target="x", valid="y"), 300, 16)
    other.write_text("one line\n")
    pairs = Pairs(str(other), str(other), str(other))
    with pytest.raises(InputError, match=r"train.tsv has 400 lines and .*short.txt has 1"):
        new_tokenizer(train_file, pairs, 300, 16)
    other.write_bytes(b"fine\n\xff\n")
    with pytest.raises(InputError, match="short.txt, line 2: byte 0xff is not UTF-8"):
        new_tokenizer(str(other), Pairs(valid=train_file), 300, 16)
    with pytest.raises(InputError, match=r"800 texts give .* fewer than the vocabulary of 9000"):
        new_tokenizer(str(data), Pairs(), 9000, 16)
