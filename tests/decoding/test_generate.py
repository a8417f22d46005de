"""lowbit.generate against model.generate, token for token."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    FalconConfig,
    FalconForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.modeling_outputs import BaseModelOutput

import lowbit
from lowbit.decoding import step
from lowbit.decoding.adapters import CACHE
from lowbit.errors import UsageError
from lowbit.fallbacks import SlowPathWarning
from lowbit.kernels import native
from lowbit.kernels.attention.hf_attention import KERNELS
from lowbit.runtime.programs import Compiled, Programs
from tests import real
from tests.models import VOCABULARY, make
from tests.small_tokenizers import words

DECODERS = ("gpt2", "llama-tied")
TRANSLATORS = ("marian", "bart")
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 8}


def quantized(name, recipe=None):
    model = make(name)
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    return model


def batch(model):
    """Three rows of different lengths, padded as the model wants it."""
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in ((1, 4), (2, 2)):
        gap = slice(9 - padding, 9) if model.config.is_encoder_decoder else slice(padding)
        ids[row, gap], mask[row, gap] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def same(model, inputs, **settings):
    expected = model.generate(**inputs, **settings)
    for _ in range(3):  # steps are recorded, then the first token, then both are kept
        assert torch.equal(lowbit.generate(model, **inputs, **settings), expected)
    return expected


def recordings(monkeypatch):
    """The steps that were recorded from now on."""
    seen = []

    class Counted(step.Recording):
        def __init__(self):
            super().__init__()
            seen.append(self)

    monkeypatch.setattr(step, "Recording", Counted)
    return seen


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *((name, recipe) for name in DECODERS + TRANSLATORS for recipe in (None, "int8-dynamic")),
        ("llama-tied", "int4-all"),
        ("bart", "int4-all-dynamic"),
        ("gpt2", "bcq2-dynamic"),
    ],
)
def test_greedy_tokens_of_a_padded_batch_are_those_of_transformers(name, recipe):
    model = quantized(name, recipe)
    same(model, batch(model), **GREEDY)


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("name", DECODERS + TRANSLATORS)
def test_with_our_own_attention_every_bit_is_that_of_transformers(name, attention):
    model = quantized(name, "int8-dynamic")
    model.set_attn_implementation(attention)
    scores = {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**batch(model), **GREEDY, **scores)
    for _ in range(3):  # recorded, then from what was kept
        got = lowbit.generate(model, **batch(model), **GREEDY, **scores)
        assert torch.equal(got.sequences, expected.sequences)
        assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("name", DECODERS + TRANSLATORS)
def test_beams_are_those_of_transformers(name):
    model = quantized(name, "int8-dynamic")
    settings = GREEDY | {"num_beams": 3}
    same(model, batch(model), length_penalty=0.6, early_stopping=True, **settings)
    same(model, batch(model), num_return_sequences=2, eos_token_id=[7, 50, 90], **settings)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", DECODERS + TRANSLATORS)
def test_rows_end_where_theirs_do(name, beams):
    model = quantized(name, "int8-dynamic")
    settings = GREEDY | {"num_beams": beams, "max_new_tokens": 12}
    free = model.generate(**batch(model), **settings)
    ends = [int(free[row, -8 + 2 * row]) for row in range(3)]
    ended = same(model, batch(model), eos_token_id=ends, **settings)
    assert ended.shape[1] <= free.shape[1] and (ended == 0).any()


def test_settings_of_transformers_hold():
    model = quantized("marian", "int4-all-dynamic")
    free = model.generate(**batch(model), **GREEDY)
    bad = [[int(free[0, 2])], free[1, 3:5].tolist()]
    forced = {"forced_bos_token_id": 9, "forced_eos_token_id": 2}
    for beams in (1, 2):
        got = same(model, batch(model), bad_words_ids=bad, num_beams=beams, **forced, **GREEDY)
        assert (got[:, 1] == 9).all()
    same(model, batch(model), repetition_penalty=1.7, max_length=7, decoder_start_token_id=5)
    scores = {"return_dict_in_generate": True, "output_scores": True}
    got = lowbit.generate(model, **batch(model), **GREEDY, **scores)
    expected = model.generate(**batch(model), **GREEDY, **scores)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.scores), torch.stack(expected.scores))


@pytest.mark.parametrize("name", DECODERS)
def test_samples_are_the_same_from_the_same_seed(name):
    model = quantized(name)
    settings = GREEDY | {"do_sample": True, "top_k": 20, "temperature": 1.5}
    torch.manual_seed(0)
    expected = model.generate(**batch(model), **settings)
    for _ in range(3):
        torch.manual_seed(0)
        assert torch.equal(lowbit.generate(model, **batch(model), **settings), expected)


@pytest.mark.parametrize("name", ["llama-untied", "marian"])
def test_keys_and_values_give_what_reading_everything_again_gives(name):
    """Past the room that a cache has at first; in float64, where rounding decides nothing."""
    model = quantized(name).double()
    new = 70 if name.startswith("llama") else 40
    settings = GREEDY | {"max_new_tokens": new, "eos_token_id": VOCABULARY}
    expected = model.generate(**batch(model), use_cache=False, **settings)
    got = lowbit.generate(model, **batch(model), **settings)
    assert got.shape == expected.shape and torch.equal(got, expected)


def test_steps_are_recorded_once_for_a_number_of_rows(monkeypatch):
    model, seen = quantized("gpt2", "int8-dynamic"), recordings(monkeypatch)
    ids = batch(model)["input_ids"]
    for length in (9, 5, 9):
        same(model, {"input_ids": ids[:, :length]}, **GREEDY)
    assert len(seen) == 2
    same(model, {"input_ids": ids[:1]}, **GREEDY)
    assert len(seen) == 4


@pytest.mark.filterwarnings("error")
def test_a_padding_token_in_the_config_is_no_reason_for_the_slow_way(monkeypatch):
    model, seen = quantized("gpt2", "int8-dynamic"), recordings(monkeypatch)
    model.config.pad_token_id = 0
    same(model, {"input_ids": batch(model)["input_ids"][:1]}, **GREEDY)
    assert len(seen) == 2
    for module in (model, model.transformer):
        assert "warn_if_padding_and_no_attention_mask" not in vars(module)


@pytest.mark.parametrize("name", DECODERS)
def test_stop_strings_end_a_text_where_they_do_in_transformers(name):
    model = quantized(name, "int8-dynamic")
    # transformers puts "abcdef" before each word to see how the word is written.
    tokenizer = words("abcdef", *(f"word{number}" for number in range(5, VOCABULARY)))
    ids = torch.tensor([[5, 6, 7, 8]])
    free = model.generate(ids, **GREEDY)
    stop = tokenizer.decode(free[0, 6])
    ended = same(model, {"input_ids": ids}, stop_strings=[stop], tokenizer=tokenizer, **GREEDY)
    assert ended.shape[1] < free.shape[1]


def test_a_streamer_given_by_its_position_is_refused_too():
    with pytest.raises(UsageError, match="streamer is given"):
        lowbit.generate(make("gpt2"), torch.tensor([[5]]), *[None] * 6, object(), **GREEDY)


@pytest.mark.parametrize("name", ["gpt2", "marian"])
def test_weights_that_the_first_call_packs_are_not_recorded_again(monkeypatch, name):
    model, seen = quantized(name, "int8-dynamic"), recordings(monkeypatch)
    for _ in range(3):
        lowbit.generate(model, **batch(model), **GREEDY)
    assert len(seen) == 2


def passes(monkeypatch, model):
    """The lengths of the sources that the model's own forward reads from now on."""
    seen, forward = [], type(model).forward

    def counted(self, *args, **kwargs):
        seen.append(kwargs["encoder_outputs"][0].shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    return seen


def sources(length, is_padded):
    ids = torch.randint(3, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if is_padded:
        ids[1, length // 2 + 1 :], mask[1, length // 2 + 1 :] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["sdpa", "lowbit_float32"])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_first_token_is_a_step_for_any_length_of_the_source(monkeypatch, name, beams, attention):
    model = quantized(name, "int8-dynamic")
    model.set_attn_implementation(attention)
    settings = GREEDY | {"num_beams": beams}
    for is_padded in (False, True):
        same(model, sources(9, is_padded), **settings)
        for length in (3, 4, 5, 8, 9, 16, 18):
            inputs = sources(length, is_padded)
            expected = model.generate(**inputs, **settings)
            with monkeypatch.context() as patch:
                seen = passes(patch, model)
                got = lowbit.generate(model, **inputs, **settings)
            assert not seen and torch.equal(got, expected)


def test_a_source_twice_as_long_as_the_recorded_ones_is_recorded_again(monkeypatch):
    model = quantized("marian", "int8-dynamic")
    for length in (1, 9, 19, 30):
        same(model, sources(length, False), **GREEDY)
    seen = passes(monkeypatch, model)
    for length in (1, 9, 19, 38):
        lowbit.generate(model, **sources(length, False), **GREEDY)
    lowbit.generate(model, **sources(39, False), **GREEDY)
    # The model reads the last one, and the two sources of the recordings.
    assert seen == [39, 1, 78]


def louder_above_12(x):
    return x * 2 if x.shape[1] > 12 else x


def first_12(x):
    return x[:, :12]


def louder_if_positive(x):
    return x * -3 if x.sum() > 0 else x


def at_most_9(x):
    if x.shape[1] > 9:
        raise ValueError("too long")
    return x


@pytest.mark.parametrize(
    "change", [louder_above_12, first_12, louder_if_positive, at_most_9], ids=lambda f: f.__name__
)
def test_a_decoder_that_treats_sources_unlike_is_read_by_the_model(monkeypatch, change):
    model = quantized("marian")
    attention = type(model.get_decoder().layers[0].encoder_attn)
    forward = attention.forward

    def changed(self, hidden_states, key_value_states=None, **kwargs):
        if key_value_states is not None and not kwargs[CACHE].is_updated.get(self.layer_idx):
            key_value_states = change(key_value_states)
        return forward(self, hidden_states, key_value_states=key_value_states, **kwargs)

    monkeypatch.setattr(attention, "forward", changed)
    for length in (9, 6, 40) if change is not at_most_9 else (9, 6):
        for _ in range(2):
            inputs = sources(length, False)
            scores = {"return_dict_in_generate": True, "output_logits": True}
            got = lowbit.generate(model, **inputs, **GREEDY, **scores)
            expected = model.generate(**inputs, **GREEDY, **scores)
            assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits))


def test_one_encoder_output_for_all_rows_is_read_by_the_model():
    model = quantized("marian")
    same(model, sources(9, False), **GREEDY)
    encoded = model.get_encoder()(sources(9, False)["input_ids"][:1])
    prompt = torch.full((3, 1), model.config.decoder_start_token_id)
    same(model, {"encoder_outputs": encoded, "decoder_input_ids": prompt}, **GREEDY)


def test_a_first_token_that_is_no_step_is_read_by_the_model(monkeypatch):
    """As of a model that treats the start of a text otherwise."""
    model = quantized("marian", "int8-dynamic")
    forward = type(model).forward

    def louder(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if kwargs[CACHE].get_seq_length() == 1:
            output.logits = output.logits.flip(-1)
        return output

    monkeypatch.setattr(type(model), "forward", louder)
    same(model, batch(model), **GREEDY)
    seen = passes(monkeypatch, model)
    same(model, batch(model), **GREEDY)
    # Of each three calls, the model itself reads the first token and no other; a fourth is its own.
    assert len(seen) == 3 + GREEDY["max_new_tokens"]


def test_a_prompt_of_several_tokens_is_read_by_the_model(monkeypatch):
    model = quantized("marian", "int8-dynamic")
    prompt = torch.tensor([[5, 6]] * 3)
    same(model, batch(model), **GREEDY)
    same(model, batch(model), decoder_input_ids=prompt, **GREEDY)
    seen = passes(monkeypatch, model)
    lowbit.generate(model, **batch(model), decoder_input_ids=prompt, **GREEDY)
    assert len(seen) == 1


@pytest.mark.parametrize("recipe", [None, "int4"])
def test_a_change_of_plain_attributes_is_recorded_again(recipe):
    """Such as which adapters of PEFT are active, and the numbers of norms."""
    adapters = pytest.importorskip("peft")
    import lowbit.peft  # noqa: F401  # registers

    model = quantized("llama-tied", recipe)
    config = adapters.LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = adapters.get_peft_model(model, config).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    found = [same(model, inputs, **GREEDY)]
    with model.disable_adapter():
        found.append(same(model, inputs, **GREEDY))
    layer = model.base_model.model.model.layers[0]
    layer.self_attn.q_proj.scaling["default"] = 40.0
    found.append(same(model, inputs, **GREEDY))
    layer.input_layernorm.variance_epsilon = 10.0
    found.append(same(model, inputs, **GREEDY))
    assert len({tuple(ids[0].tolist()) for ids in found}) == len(found)


@pytest.mark.parametrize("name", ["llama-tied", "marian"])
def test_the_cache_that_is_returned_is_transformers_own(name):
    model = quantized(name)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    scores = {"return_dict_in_generate": True}
    wanted = model.generate(**inputs, **GREEDY, **scores)
    got = lowbit.generate(model, **inputs, **GREEDY, **scores)
    caches = [each[CACHE] for each in (got, wanted)]
    assert type(caches[0]) is type(caches[1])
    if model.config.is_encoder_decoder:
        caches = [each.self_attention_cache for each in caches]
    for _ in range(2):
        mine, theirs = (cache.layers for cache in caches)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.keys, b.keys)
            torch.testing.assert_close(a.values, b.values)
        for cache in caches:
            cache.crop(-2)
            cache.batch_repeat_interleave(2)
    for cache in caches:
        cache.reset()
        assert cache.get_seq_length() == 0


def test_a_model_that_makes_positions_of_its_mask_is_refused_with_a_sentence():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = FalconConfig(vocab_size=VOCABULARY, alibi=True, eos_token_id=None, **sizes)
    model = FalconForCausalLM(config).eval()
    inputs = batch(model)
    assert model.generate(**inputs, **GREEDY).shape == (3, 17)
    with pytest.raises(UsageError, match="does not take a mask .* model.generate does"):
        lowbit.generate(model, **inputs, **GREEDY)


def test_a_model_that_changed_is_recorded_again():
    model = quantized("llama-untied")
    before = same(model, batch(model), **GREEDY)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    after = same(model, batch(model), **GREEDY)
    assert not torch.equal(after, before)
    lowbit.quantize(model, "int8-dynamic", progress=False)
    same(model, batch(model), **GREEDY)
    model.load_state_dict(model.state_dict())
    same(model, batch(model), **GREEDY)


def test_a_model_that_once_gave_its_hidden_states_is_served():
    model = quantized("llama-tied", "int8-dynamic")
    model(**batch(model), output_hidden_states=True)
    same(model, batch(model), **GREEDY)


def test_threads_do_not_share_memory():
    model = quantized("gpt2", "int8-dynamic")
    prompts = torch.randint(3, VOCABULARY, (6, 1, 4), generator=torch.Generator().manual_seed(2))
    expected = [model.generate(ids, **GREEDY) for ids in prompts]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda ids: lowbit.generate(model, ids, **GREEDY), prompts))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def sliding():
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=4,
        )
    ).eval()


def hybrid():
    return JambaForCausalLM(
        JambaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_experts=1,
            num_experts_per_tok=1,
            use_mamba_kernels=False,
        )
    ).eval()


def altered(name, **methods):
    """A model whose class has some methods of its own."""
    model = make(name)
    model.__class__ = type("Altered", (type(model),), methods)
    return model


def searching():
    return altered("gpt2", _sample=lambda self, ids, **_: ids)


def caching():
    return altered("gpt2", _supports_default_dynamic_cache=classmethod(lambda cls: False))


def counting():
    """It has an opinion of its own about the position of a token."""

    def prepared(self, ids, **kwargs):
        inputs = super(type(self), self).prepare_inputs_for_generation(ids, **kwargs)
        return inputs | {"position_ids": torch.tensor([[ids.shape[1] - 2]])}

    return altered("gpt2", prepare_inputs_for_generation=prepared)


def forgetting():
    """It computes without the cache that it is given."""

    def forward(self, *args, **kwargs):
        kwargs["use_cache"] = False
        for name in ("cache", "past_key_values"):
            kwargs.pop(name, None)
        return super(type(self), self).forward(*args, **kwargs)

    return altered("gpt2", forward=forward)


def eager():
    model = make("gpt2")
    model.set_attn_implementation("eager")
    return model


def fake_quantized(recipe):
    """Its weights are rounded anew in every step: a recording would keep the first ones."""
    model = make("gpt2")
    lowbit.prepare_qat(model, recipe)
    return model


def watched():
    model = make("gpt2")
    model.transformer.h[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("build", "settings", "sentence"),
    [
        (lambda: make("gpt2").train(), {}, "training mode"),
        (watched, {}, "transformer.h.0 has forward hooks"),
        (eager, {}, "attention is eager"),
        (sliding, {}, "layers of DynamicSlidingWindowLayer"),
        (hybrid, {}, "layers of LinearAttentionLayer"),
        (searching, {}, "Altered has its own greedy_search"),
        (caching, {}, "makes no cache for the model"),
        (counting, {}, "makes its own position_ids"),
        (forgetting, {}, "keys and values of all layers"),
        (lambda: make("bert"), {}, "BertModel does not generate text"),
        (lambda: make("gpt2"), {"use_cache": False}, "use_cache is False"),
        (lambda: make("gpt2"), {"streamer": object()}, "streamer"),
        (lambda: make("gpt2"), {"output_hidden_states": True}, "output_hidden_states"),
        (lambda: make("gpt2"), {"prompt_lookup_num_tokens": 2}, "assisted_generation"),
        (lambda: make("gpt2"), {"cache_implementation": "static"}, "cache_implementation"),
        (
            lambda: make("gpt2"),
            {"token_type_ids": torch.ones(1, 4, dtype=torch.long)},
            "token_type_ids",
        ),
    ],
)
def test_what_is_not_served_is_refused(build, settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        lowbit.generate(build(), torch.tensor([[5, 6, 7, 8]]), **GREEDY | settings)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: make("t5"), "changes with the number of tokens"),
        (lambda: quantized("t5", "int8"), "changes with the number of tokens"),
        (lambda: fake_quantized("int4"), "makes a weight from another"),
        (lambda: fake_quantized("int8-dynamic"), "makes a weight from another"),
    ],
)
def test_a_model_whose_steps_cannot_be_recorded_computes_them_and_says_so(build, sentence):
    model, ids = build().eval(), torch.tensor([[5, 6, 7, 8], [9, 3, 4, 5]])
    wanted = model.generate(ids, **GREEDY)
    with pytest.warns(SlowPathWarning, match=sentence):
        got = lowbit.generate(model, ids, **GREEDY)
    assert torch.equal(got, wanted)
    assert torch.equal(lowbit.generate(model, ids, **GREEDY), wanted)


@pytest.mark.parametrize(
    ("build", "reads"),
    [(sliding, 0), (hybrid, 0), (searching, 0), (caching, 0), (counting, 1), (forgetting, 1)],
)
def test_a_model_is_refused_before_the_first_token(build, reads):
    model, calls = build(), []
    forward = model.forward
    model.forward = lambda *args, **kwargs: calls.append(args) or forward(*args, **kwargs)
    with pytest.raises(UsageError):
        lowbit.generate(model, torch.tensor([[5, 6, 7, 8]]), **GREEDY)
    assert len(calls) == reads  # of the prompt


def test_what_an_encoder_gives_beside_hidden_states_is_refused():
    model = make("bart")
    ids = batch(model)["input_ids"]
    encoded = model.get_encoder()(ids)
    settings = {"input_ids": ids, "encoder_outputs": encoded} | GREEDY
    assert torch.equal(lowbit.generate(model, **settings), model.generate(**settings))
    encoded["more"] = torch.ones(3)
    with pytest.raises(UsageError, match="the model's encoder gives last_hidden_state, more"):
        lowbit.generate(model, **settings)


def test_a_decoder_reads_its_encoder_s_kind_of_output():
    @dataclass
    class Output(BaseModelOutput):
        more: torch.Tensor | None = None

    def forward(self, *args, encoder_outputs=None, **kwargs):
        assert encoder_outputs.more is None
        return super(type(self), self).forward(*args, encoder_outputs=encoder_outputs, **kwargs)

    model = altered("bart", forward=forward)
    ids = batch(model)["input_ids"]
    encoded = Output(**model.get_encoder()(ids))
    settings = {"input_ids": ids, "encoder_outputs": encoded} | GREEDY
    assert torch.equal(lowbit.generate(model, **settings), model.generate(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-all-dynamic"])
def test_real_texts_are_those_of_transformers(recipe):
    model = AutoModelForCausalLM.from_pretrained(real.model("gpt2-wikitext2")).eval()
    tokenizer = AutoTokenizer.from_pretrained(real.model("gpt2-wikitext2"))
    lowbit.quantize(model, recipe, progress=False)
    text = real.data("wikitext-2", "test.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text[:4000]).input_ids)[:192].view(4, 48)
    same(model, {"input_ids": ids}, **GREEDY | {"max_new_tokens": 40})
    same(model, {"input_ids": ids[:1]}, num_beams=4, **GREEDY | {"max_new_tokens": 20})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "int8-all-dynamic"])
def test_real_pronunciations_are_those_of_transformers(recipe):
    folder = real.model("bart-g2p-us")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    letters = json.loads((folder / "characters.json").read_text(encoding="utf-8"))["graphemes"]
    words = ["quantize", "a", "pronunciation", "lowbit", "thorough"]
    rows = [torch.tensor([1, *(letters.index(letter) for letter in word), 2]) for word in words]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for beams in (1, 4):
        same(model, inputs, num_beams=beams, max_new_tokens=30)


@pytest.mark.skipif(not native.available(), reason=native.reason())
@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_compiled_encoder_serves_every_call(name):
    model = quantized(name, "int8-dynamic")
    inputs = batch(model)
    scores = {"return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        expected = torch.stack(model.generate(**inputs, **GREEDY, **scores).logits)
        lowbit.compile(model.get_encoder())
        for _ in range(3):
            got = torch.stack(lowbit.generate(model, **inputs, **GREEDY, **scores).logits)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    made = Programs.of(model.get_encoder()).made.values()
    assert made and all(isinstance(each, Compiled) for each in made)
