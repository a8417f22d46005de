import copy
import math
import os
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    modeling_utils,
)

import lowbit
from lowbit import InputError, UsageError
from lowbit.evaluation import windows as module
from lowbit.evaluation.perplexity import perplexity
from tests.models import VOCABULARY, make

CONTEXT = 64
SHARED = Path(__file__).parents[3] / "shared"


def text(length, seed=0):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    model = make("gpt2")
    # Far enough from uniform that every token matters.
    model.transformer.wte.weight.data *= 3
    return model


def straightforward(model, ids, context, stride):
    """Hugging Face's loop, one window at a time, in float64."""
    model = copy.deepcopy(model).double()
    total, count, done = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + context, len(ids))
        targets = ids[start:end].clone()
        targets[: -(end - done)] = -100
        with torch.no_grad():
            log_p = model(ids[start:end][None]).logits[0].log_softmax(-1)
        for position, target in enumerate(targets[1:].tolist()):
            if target != -100:
                total -= log_p[position, target].item()
                count += 1
        done = end
        if end == len(ids):
            break
    return math.exp(total / count)


@pytest.mark.parametrize(
    ("length", "context", "stride"),
    [
        (300, None, None),
        (256, 64, 64),
        (257, 64, 64),  # the last window holds one token, which nothing precedes
        (300, 64, 32),
        (100, 64, 1),
        (301, 64, 63),
        (64, 64, 17),
        (40, None, None),
        (2, None, None),
        (11, 2, 1),
        (11, 3, 2),
    ],
)
def test_it_equals_a_straightforward_loop_in_float64(model, length, context, stride):
    ids = text(length)
    wanted = straightforward(model, ids, context or CONTEXT, stride or context or CONTEXT)
    got = perplexity(model, ids, context, stride, progress=False)
    # Losses are below 32, where float32 numbers are 2e-6 apart. The error of the mean loss is the
    # relative error of its exponential.
    assert got == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize(("length", "context", "stride"), [(300, 64, 7), (65, 64, 1), (2, 2, 1)])
def test_overlapping_windows_predict_every_token_but_the_first_once(length, context, stride):
    predicted = []
    for start, end, new in module._windows(length, context, stride):
        assert end - start <= context and new < end - start
        predicted += range(end - new, end)
    assert predicted == list(range(1, length))


@pytest.mark.parametrize("at_once", [1, CONTEXT * VOCABULARY * 3, 1 << 30])
def test_how_many_windows_go_together_does_not_matter(model, monkeypatch, at_once):
    ids = text(400)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    wanted = straightforward(model, ids, 64, 48)
    assert perplexity(model, ids, 64, 48, progress=False) == pytest.approx(wanted, rel=1e-6)


def test_a_model_of_equal_logits_is_as_uncertain_as_its_vocabulary_is_large():
    model = make("gpt2")
    model.transformer.wte.weight.data.zero_()
    assert perplexity(model, text(100), progress=False) == pytest.approx(VOCABULARY, rel=1e-6)


def test_modes_and_gradients_are_as_they_were_even_after_an_error(model):
    model.train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    perplexity(model, text(100), progress=False)
    assert [m.training for m in model.modules()] == modes
    model.transformer.h[0].forward = None
    with pytest.raises(TypeError):
        perplexity(model, text(100), progress=False)
    del model.transformer.h[0].forward
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()
    model.eval()


def test_a_quantized_model_is_measured_as_any_other(model):
    quantized = make("gpt2")
    lowbit.quantize(quantized, "int4-all", progress=False)
    wanted = straightforward(quantized, text(150), 64, 64)
    assert perplexity(quantized, text(150), progress=False) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_shorter_than_two_tokens_is_refused(model, length):
    with pytest.raises(InputError, match=f"has {length} tokens; at least 2"):
        perplexity(model, text(length))


@pytest.mark.parametrize(
    ("context", "stride", "sentence"),
    [
        (65, None, "context 65 is longer than the model's 64 positions"),
        (1, None, "context 1 is too short"),
        (32, 33, "stride 33 is outside 1 … 32"),
        (32, 0, "stride 0 is outside 1 … 32"),
    ],
)
def test_windows_that_cannot_be_are_wrong_use(model, context, stride, sentence):
    with pytest.raises(UsageError, match=sentence):
        perplexity(model, text(100), context, stride)


def test_ids_of_another_vocabulary_are_refused(model):
    with pytest.raises(InputError, match=f"token {VOCABULARY} is outside .* of {VOCABULARY}"):
        perplexity(model, torch.tensor([1, 2, VOCABULARY]))
    with pytest.raises(UsageError, match=r"not \[1, 3\]"):
        perplexity(model, torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("name", ["bert", "bert-mlm", "bart"])
def test_only_causal_language_models_have_a_perplexity(name):
    with pytest.raises(UsageError, match="needs a causal language model, not B"):
        perplexity(make(name), text(10))


@pytest.mark.parametrize("context", [None, 2])
def test_an_encoder_with_a_language_head_reads_what_it_predicts(context):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=VOCABULARY, intermediate_size=64, **sizes)
    with pytest.raises(UsageError, match="BertLMHeadModel also reads the tokens"):
        perplexity(BertLMHeadModel(config), text(10), context)
    config.is_decoder = True
    assert perplexity(BertLMHeadModel(config), text(10), context) > 1


@pytest.mark.nightly
def test_a_trained_gpt2_has_its_known_perplexity_on_wikitext():
    data = Path(os.environ.get("LOWBIT_DATA", SHARED / "data")) / "wikitext-2" / "test.txt"
    folder = SHARED / "models" / "gpt2-wikitext2"
    for path in (data, folder):
        if not path.exists():
            pytest.skip(f"{path} is absent")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(data.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert perplexity(model, ids[: 600 * 256]) == pytest.approx(49.515, abs=0.01)
    some = ids[: 30 * 256]
    before = perplexity(model, some)
    assert before == pytest.approx(straightforward(model, some, 256, 256), rel=1e-4)
    lowbit.quantize(model, "int8")
    assert abs(perplexity(model, some) / before - 1) < 0.002


def test_windows_of_a_model_with_few_tokens_to_choose_from_are_bounded_too():
    """A line of 200,000 bytes took a gigabyte: what layers compute is wider than the logits."""
    model = make("gpt2")
    windows = module.Windows(model, torch.zeros(20_000, dtype=torch.int64))
    assert model.config.vocab_size == 200
    sizes = [batch.tokens.numel() for batch in windows]
    assert max(sizes) == 2048 and sum(sizes) == 20_000


def test_whole_windows_give_no_advice_on_masks(monkeypatch):
    told = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", told.append)
    model, ids = make("gpt2"), text(130)
    model.config.pad_token_id = int(ids[0])
    perplexity(model, ids, progress=False)
    assert not told
