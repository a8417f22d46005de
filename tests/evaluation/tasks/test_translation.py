import json
import math
import sys
from collections import Counter

import pytest
import torch
from transformers import BartForConditionalGeneration

from lowbit import InputError, UsageError
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.translation import Translation
from tests import real
from tests.models import make
from tests.small_tokenizers import Characters

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
SOURCES = ["a cat.", "", "the longer one, by far, of all of them", "b", "   ", "dog", "a cat."]
TARGETS = ["ein kater.", "", "der weitaus laengste von allen", "b", "leer", "hund", "kater."]


def subject(name="marian", seed=0):
    model = make(name, seed)
    # A random model whose output is tied to its input says one word again and again.
    model.lm_head = torch.nn.Linear(model.config.d_model, model.config.vocab_size, bias=False)
    for parameter in model.parameters():
        parameter.data *= 4
    return Subject("random", model, Characters(LETTERS, LETTERS * 7))


def written(tmp_path, sources=SOURCES, targets=TARGETS):
    file = tmp_path / "test.tsv"
    lines = [f"{s}\t{t}\n" for s, t in zip(sources, targets, strict=True)]
    file.write_text("".join(lines))
    return str(file)


def greedy(model, tokenizer, text, most):
    """One sentence, token by token, the whole prefix through the decoder each time."""
    inputs = tokenizer([text], padding=True, return_tensors="pt", verbose=False)
    ids = [model.config.decoder_start_token_id]
    for step in range(most):
        with torch.no_grad():
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                decoder_input_ids=torch.tensor([ids]),
            ).logits[0, -1]
        # Marian never writes its padding; the last token must be the end.
        for bad in model.generation_config.bad_words_ids or []:
            logits[bad] = -math.inf
        last = step == most - 1 and model.generation_config.forced_eos_token_id is not None
        ids.append(2 if last else int(logits.argmax()))
        if ids[-1] == 2:
            break
    return tokenizer.batch_decode(torch.tensor([ids]), skip_special_tokens=True)[0]


@pytest.mark.parametrize("name", ["marian", "bart", "t5"])
def test_cached_batches_in_their_order_are_what_one_sentence_at_a_time_gives(tmp_path, name):
    random = subject(name)
    found = Translation(written(tmp_path), max_new_tokens=12, batch_size=3).measure(
        random, progress=False
    )
    expected = [
        greedy(random.model, random.tokenizer, source, 12) if source.strip() else ""
        for source in SOURCES
    ]
    assert found.predictions == tuple(expected)
    assert len(set(expected)) > 3
    assert (found.items, found.unit, found.main_metric) == (7, "sentences", "bleu")
    assert found.samples[0].source == "a cat." and found.samples[0].reference == "ein kater."
    assert found.samples[2].output == expected[2]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_size_of_a_batch_changes_no_translation(tmp_path, beams):
    data, random = written(tmp_path), subject("bart")
    found = [
        Translation(data, beams=beams, max_new_tokens=10, batch_size=size)
        .measure(random, progress=False)
        .predictions
        for size in (1, 2, 32)
    ]
    assert found[0] == found[1] == found[2]


def test_more_beams_find_what_is_likelier(tmp_path):
    random = subject("bart")

    def likelihood(source, output):
        inputs = random.tokenizer([source], padding=True, return_tensors="pt", verbose=False)
        ids = [0] + [tokens[character] for character in output]
        with torch.no_grad():
            log_p = (
                random.model(input_ids=inputs["input_ids"], decoder_input_ids=torch.tensor([ids]))
                .logits[0]
                .log_softmax(-1)
            )
        return sum(log_p[i, number].item() for i, number in enumerate(ids[1:]))

    # Closer to each other, so that the best first token need not start the best sentence.
    random.model.lm_head.weight.data /= 8
    # Each token a character of its own, so that the text tells the tokens.
    tokens = {chr(0x4E00 + number): number for number in range(4, 200)}
    random.tokenizer.characters = {number: character for character, number in tokens.items()}
    random.model.generation_config.forced_eos_token_id = None
    random.model.generation_config.eos_token_id = None
    found = {}
    for beams in (1, 12):
        task = Translation(written(tmp_path), beams=beams, max_new_tokens=3)
        measured = task.measure(random, progress=False)
        assert measured.settings["beams"] == beams
        found[beams] = [
            likelihood(source, output)
            for source, output in zip(SOURCES, measured.predictions, strict=True)
            if len(output) == 3
        ]
    assert len(found[1]) == len(found[12]) == 5
    assert sum(found[12]) > sum(found[1])


def test_empty_sources_never_meet_the_model(tmp_path, monkeypatch):
    random = subject()
    monkeypatch.setattr(random.model, "generate", None)
    found = Translation(written(tmp_path, ["", " ", "\u3000"], ["", "x", ""])).measure(
        random, progress=False
    )
    assert found.predictions == ("", "", "")
    assert found.metrics["exact_match"].value == pytest.approx(2 / 3)


def bleu(outputs, references):
    """Papineni et al. 2002, of texts whose words are already apart, without smoothing."""
    clipped, total, hypothesis, reference = [0] * 4, [0] * 4, 0, 0
    for output, golden in zip(outputs, references, strict=True):
        output, golden = output.split(), golden.split()
        hypothesis, reference = hypothesis + len(output), reference + len(golden)
        for n in range(1, 5):
            has, needs = (
                Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
                for text in (output, golden)
            )
            clipped[n - 1] += sum((has & needs).values())
            total[n - 1] += sum(has.values())
    brevity = min(0.0, 1 - reference / hypothesis)
    precisions = [math.log(c / t) for c, t in zip(clipped, total, strict=True)]
    return 100 * math.exp(brevity + sum(precisions) / 4)


def chrf(outputs, references):
    """Popović 2015: F2 of the character n-grams, n = 1 … 6, without blanks; means over n."""
    scores = []
    for n in range(1, 7):
        shared = has_all = needs_all = 0
        for output, golden in zip(outputs, references, strict=True):
            has, needs = (
                Counter(text[i : i + n] for i in range(len(text) - n + 1))
                for text in (output.replace(" ", ""), golden.replace(" ", ""))
            )
            shared += sum((has & needs).values())
            has_all, needs_all = has_all + sum(has.values()), needs_all + sum(needs.values())
        p, r = shared / has_all, shared / needs_all
        scores.append((p, r))
    p, r = (sum(values) / 6 for values in zip(*scores, strict=True))
    return 100 * 5 * p * r / (4 * p + r)


def test_scores_are_bleu_and_chrf_by_their_papers(tmp_path, monkeypatch):
    outputs = [
        "the cat sat on the mat today",
        "a dog ran over the green hill",
        "no one came to the old house",
        "it is the same line in both of them",
    ]
    references = [
        "the cat sat on a mat today",
        "the dog ran over the green hill and back",
        "no one came to this house",
        "it is the same line in both of them",
    ]
    random = subject()
    random.tokenizer.characters = dict(enumerate(LETTERS, 4))
    monkeypatch.setattr(random.model, "generate", lambda input_ids, **_: input_ids)
    found = Translation(written(tmp_path, outputs, references)).measure(random, progress=False)
    assert found.predictions == tuple(outputs)
    assert found.metrics["bleu"].value == pytest.approx(bleu(outputs, references), abs=1e-9)
    assert found.metrics["chrf"].value == pytest.approx(chrf(outputs, references), abs=1e-9)
    assert found.metrics["exact_match"].value == 1 / 4
    assert "nrefs:1|" in found.metrics["bleu"].note and "tok:13a" in found.metrics["bleu"].note
    assert "nc:6" in found.metrics["chrf"].note and "version:" in found.metrics["chrf"].note


def test_lines_too_short_for_bleu_are_compared_whole(tmp_path, monkeypatch):
    random = subject()
    random.tokenizer.characters = dict(enumerate(LETTERS, 4))
    monkeypatch.setattr(random.model, "generate", lambda input_ids, **_: input_ids)
    for target, expected in (("a b c", ["exact_match", "chrf"]), ("a b c d", ["bleu", "chrf"])):
        data = written(tmp_path, ["x", "a b c d e"], ["x", target])
        found = Translation(data).measure(random, progress=False)
        assert list(found.metrics)[:2] == expected
        assert found.metrics["exact_match"].value == 1 / 2


@pytest.mark.parametrize("size", [1, 3, 4])
def test_sources_longer_than_the_model_reads_are_cut_and_counted(tmp_path, size):
    random = subject("bart")
    sources = ["a" * 62, "a" * 63, "b" * 300, "c"]
    found = Translation(
        written(tmp_path, sources, sources), max_new_tokens=5, batch_size=size
    ).measure(random, progress=False)
    assert found.settings["truncated"] == 2
    cut = Translation(
        written(tmp_path, ["a" * 62, "a" * 62, "b" * 62, "c"], sources), max_new_tokens=5
    ).measure(random, progress=False)
    assert found.predictions == cut.predictions and cut.settings["truncated"] == 0


def test_a_prefix_is_put_before_what_is_translated(tmp_path):
    random = subject("bart")

    def measured(source, prefix):
        data = written(tmp_path, [source, ""], ["", ""])
        return Translation(data, max_new_tokens=6, prefix=prefix).measure(random, progress=False)

    found = measured("cat", "a ")
    assert found.settings["prefix"] == "a " and found.predictions[1] == ""
    assert measured("a cat", "").predictions == found.predictions
    assert measured("cat", "").predictions != found.predictions


def test_the_models_own_generation_settings_stay_but_nothing_is_sampled(tmp_path):
    random = subject("bart")
    random.model.generation_config.do_sample = True
    random.model.generation_config.num_beams = 4
    random.model.generation_config.max_length = 3
    random.model.train()
    state = torch.get_rng_state()
    task = Translation(written(tmp_path), max_new_tokens=12)
    first = task.measure(random, progress=False)
    assert torch.equal(torch.get_rng_state(), state) and random.model.training
    assert random.model.generation_config.num_beams == 4
    assert first == task.measure(random, progress=False)
    assert first == task.measure(subject("bart"), progress=False)


def test_lengths_come_from_the_model_where_none_are_given(tmp_path):
    data = written(tmp_path, ["ab"], ["ab"])
    for name, expected in (("bart", 63), ("t5", 256)):
        random = subject(name)
        limits = []

        def generate(input_ids, generation_config, limits=limits, **_):
            limits.append(generation_config.max_new_tokens)
            return input_ids

        random.model.generate = generate
        found = Translation(data).measure(random, progress=False)
        assert found.settings["max_new_tokens"] == expected and limits == [expected]


def test_a_model_or_options_that_do_not_fit_are_wrong_use(tmp_path, monkeypatch):
    data, random = written(tmp_path), subject("bart")
    for name in ("bert", "gpt2", "bert-classifier"):
        with pytest.raises(UsageError, match="translation needs an encoder–decoder that generat"):
            Translation(data).check(Subject(name, make(name), random.tokenizer))
    with pytest.raises(UsageError, match="random has no tokenizer"):
        Translation(data).check(Subject("random", random.model, None))
    with pytest.raises(UsageError, match="beams must be at least 1"):
        Translation(data, beams=0).check(random)
    with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
        Translation(data, batch_size=0).check(random)
    with pytest.raises(UsageError, match="max_new_tokens must be at least 1, not 0"):
        Translation(data, max_new_tokens=0).check(random)
    with pytest.raises(UsageError, match="64 new tokens do not fit .* 64 positions"):
        Translation(data, max_new_tokens=64).check(random)
    Translation(data, max_new_tokens=63).check(random)
    with pytest.raises(UsageError, match="columns 0 and 2"):
        Translation(data, source_column=0).check(random)
    target = tmp_path / "short.txt"
    target.write_text("one\n")
    with pytest.raises(InputError, match=r"test.tsv has 7 lines and .*short.txt has 1"):
        Translation(data, target=str(target)).check(random)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r'needs the package sacrebleu: pip install "\.\[ev'):
        Translation(data).check(random)


def test_a_real_encoder_decoder_has_its_known_word_accuracy(tmp_path):
    folder = real.model("bart-g2p-us")
    characters = json.loads((folder / "characters.json").read_text(encoding="utf-8"))
    pairs = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    tokenizer = Characters(characters["graphemes"][4:], characters["phonemes"][4:])
    model = BartForConditionalGeneration.from_pretrained(folder)
    data = written(tmp_path, pairs.keys(), pairs.values())
    found = Translation(data, batch_size=100).measure(
        Subject("g2p", model, tokenizer), progress=False
    )
    assert found.items == 1000 and found.main_metric == "exact_match"
    assert found.metrics["exact_match"].value == pytest.approx(0.644, abs=1e-9)
