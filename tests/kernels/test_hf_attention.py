"""Our own attention: near float32's where it computes in bfloat16, as good as it elsewhere."""

import subprocess
import sys
import warnings

import pytest
import torch
import transformers as tf
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import lowbit
from lowbit.fallbacks import SlowPathWarning, noted
from lowbit.kernels import native
from lowbit.kernels.attention import hf_attention
from lowbit.kernels.attention.hf_attention import KERNELS, MANY_QUERIES, attention, instead_of_sdpa
from lowbit.kernels.selection import VARIABLE, select
from tests.models import VOCABULARY, make

has_tiles = pytest.mark.skipif(bool(native.lacks("amx")), reason=native.lacks("amx") or "present")
MODELS = ["bert", "distilbert", "gpt2", "llama-tied", "bart", "marian"]
# More than the tiny models have by themselves.
POSITIONS = {"max_position_embeddings": 160, "n_positions": 160}


@pytest.fixture
def long_models(monkeypatch):
    """make(name) with positions for 96 tokens."""
    from tests import models

    for config in (models.BERT, models.SEQ2SEQ):
        monkeypatch.setitem(config, "max_position_embeddings", 160)
    for kind in ("DistilBertConfig", "GPT2Config"):
        original = getattr(models, kind)

        def config(original=original, **options):
            long = {k: POSITIONS[k] for k in options if k in POSITIONS}
            return original(**options | long)

        monkeypatch.setattr(models, kind, config)
    return make


def inputs(model, padded):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (2, 96), generator=generator)
    given = {"input_ids": ids}
    if padded:
        given["attention_mask"] = torch.ones_like(ids)
        given["attention_mask"][1, 80:] = 0
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids[:, :70]
    return given


def relative(y, reference):
    return ((y - reference).norm() / reference.norm()).item()


def allowed(name, on_tiles):
    """The relative error allowed for the attention `name`. Only tiles compute in bfloat16."""
    return on_tiles if name == "lowbit" and native.lacks("amx") is None else 2e-5


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_are_near_those_with_float32_attention(name, padded, long_models):
    model = long_models(name)
    given = inputs(model, padded)
    wanted = model(**given)[0]
    model.set_attn_implementation("lowbit")
    y = model(**given)[0]
    error = relative(y, wanted)
    assert error <= 0.01
    model.set_attn_implementation("lowbit_float32")
    in_float32 = model(**given)[0]
    assert relative(in_float32, wanted) <= 1e-5
    # Elsewhere than on tiles it is float32's own.
    assert torch.equal(y, in_float32) == (native.lacks("amx") is not None)


@torch.no_grad()
@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bart", "t5"])
def test_one_token_at_a_time_is_as_in_float32(name, attention):
    model = make(name)
    ids = torch.arange(3, 17).reshape(2, MANY_QUERIES - 1) % VOCABULARY
    seen = torch.ones_like(ids)
    seen[0, :3] = 0
    options = {"attention_mask": seen, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    wanted = model.generate(ids, **options)
    model.set_attn_implementation(attention)
    found = model.generate(ids, **options)
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits))


def test_it_takes_the_place_of_transformers_default_only_and_for_a_while():
    model = make("bart")
    for own, meanwhile in (("sdpa", "lowbit_float32"), ("eager", "eager")):
        model.set_attn_implementation(own)
        with pytest.raises(OSError, match="on the way"), instead_of_sdpa(model, "lowbit_float32"):
            assert model.config._attn_implementation == meanwhile
            assert model.model.decoder.config._attn_implementation == meanwhile
            raise OSError("on the way")
        assert model.config._attn_implementation == own


@torch.no_grad()
def test_a_model_quantized_in_place_takes_it_and_leaves_the_caller_alone():
    model = make("bert")
    config = model.config
    lowbit.quantize(model, "int8-dynamic", progress=False)
    model.set_attn_implementation("lowbit")
    blocks = [layer.attention.self for layer in model.encoder.layer]
    assert {block.config._attn_implementation for block in blocks} == {"lowbit"}
    assert config._attn_implementation == "sdpa"


def query(queries=MANY_QUERIES, dtype=torch.float32, batch=1, heads=2, size=16):
    return torch.randn(batch, heads, queries, size, dtype=dtype)


def test_many_queries_are_left_to_torch_by_scalar_code_alone(monkeypatch):
    many, few = (query(),) * 3, (query(MANY_QUERIES - 1), query(20), query(20))
    monkeypatch.setenv(VARIABLE, "scalar")
    name, why = select(KERNELS["lowbit_float32"], *many)
    assert name.name == "reference" and "8 queries are not fewer than 8" in why
    if native.module is not None:
        assert select(KERNELS["lowbit_float32"], *few)[0].name == "scalar"
    monkeypatch.setenv(VARIABLE, "avx2")
    if native.lacks("avx2") is None:
        assert select(KERNELS["lowbit_float32"], *many)[0].name == "avx2"


@has_tiles
class TestChoice:
    def why(self, *args, name="lowbit"):
        kernel, why = select(KERNELS[name], *args)
        return kernel.name, why

    @pytest.mark.parametrize(
        "call",
        [
            (query(),) * 3,
            (query(heads=4), query(3), query(3)),
            (query(), query(5), query(5, size=7), torch.ones(1, 1, 1, 5, dtype=torch.bool)),
            (query(), query(), query(), torch.zeros(1, 2, 1, 1), 0.0, {"cache": None}),
        ],
    )
    def test_tiles_serve_many_queries_of_float32(self, call):
        assert self.why(*call)[0] == "amx"

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            ((query(dtype=torch.float64),) * 3, "query is torch.float64, not float32"),
            ((query(), query(), query(dtype=torch.float64)), "value is torch.float64"),
            ((query().to("meta"),) * 3, "on meta, not on the CPU"),
            ((query(), query(0), query(0)), "key [1, 2, 0, 16] is empty"),
            ((query(), query(), query(9)), "value [1, 2, 9, 16] are not those of one"),
            ((query(batch=2), query(), query()), "query [2, 2"),
            ((query(heads=3), query(), query()), "query [1, 3"),
            ((query(), query(size=8), query()), "not those of one attention"),
            ((query(), query(), query(), torch.zeros(4, 4)), "a mask [4, 4]"),
            ((*(query(),) * 3, torch.zeros(1, 1, 1, 1).double()), "torch.float64 on cpu"),
            ((query(), query(), query().requires_grad_()), "gradients"),
            ((*(query(),) * 3, None, 0.0, {"position_bias": query().requires_grad_()}), "gradie"),
            ((query(), query(), query(), None, 0.1), "dropout 0.1"),
            ((query(), query(), query(), None, 0.0, {"softcap": 0.0}), "cap of 0.0 is not above 0"),
            (
                (query(), query(), query(), None, 0.0, {"s_aux": torch.zeros(3)}),
                "sinks [3] on cpu are not one for each head",
            ),
            ((query(), query(), query(), None, 0.0, {"cache": 1}), "cache is requested"),
        ],
    )
    def test_what_they_do_not_serve_is_float32_with_the_reason(self, call, reason):
        name, why = self.why(*call)
        assert name == "reference" and reason in why

    def test_few_queries_are_served_in_float32(self):
        few = (query(MANY_QUERIES - 1), query(20), query(20))
        assert {self.why(*few, name=name)[0] for name in KERNELS} == {"avx512"}
        assert self.why(query(), query(), query(), name="lowbit_float32")[0] == "avx512"

    def test_it_can_be_forbidden(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "reference")
        assert self.why(query(), query(), query()) == (
            "reference",
            f"reference: forced by {VARIABLE}",
        )


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (None, {"is_causal": False, "scaling": 0.5}),
        (None, {"is_causal": True}),
        (torch.rand(2, 1, 40, 40) < 0.5, {}),
        (torch.randn(1, 4, 1, 40), {"is_causal": True}),
        (None, {"position_bias": torch.randn(1, 4, 40, 40)}),
        (torch.rand(2, 1, 40, 40) < 0.5, {"position_bias": torch.randn(1, 4, 40, 40)}),
    ],
)
def test_a_call_means_what_it_means_to_transformers(mask, options, groups):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = groups
    q = torch.randn(2, 40, 4, 24, generator=generator).transpose(1, 2)
    k, v = (
        torch.randn(2, 40, 4 // groups, 24, generator=generator).transpose(1, 2) for _ in range(2)
    )
    wanted, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
    for name, kernels in KERNELS.items():
        y, weights = attention(module, q, k, v, mask, kernels=kernels, **options)
        assert weights is None and y.shape == wanted.shape and y.is_contiguous()
        assert relative(y, wanted) <= allowed(name, 0.006)


DECODER = {
    "vocab_size": 203,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "initializer_range": 0.3,
    "sliding_window": 8,
}
SEQ2SEQ = {
    "vocab_size": 203,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "init_std": 0.3,
}
BEYOND = {
    "sinks": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(num_local_experts=4, num_experts_per_tok=2, **DECODER)
    ),
    "soft cap": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(attn_logit_softcapping=2.0, query_pre_attn_scalar=16, **DECODER)
    ),
    "blocks, and a decoder that does not say it is causal": lambda: (
        tf.PegasusXForConditionalGeneration(
            tf.PegasusXConfig(block_size=8, num_global_tokens=4, **SEQ2SEQ)
        )
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("beyond", BEYOND)
def test_attention_that_is_more_than_sdpa_is_that_of_eager(beyond, padded, recwarn):
    """By our own code: these are of models for which transformers refuses "sdpa"."""
    torch.manual_seed(0)
    model = BEYOND[beyond]().eval()
    for module in model.modules():
        if hasattr(module, "sinks"):
            module.sinks.copy_(torch.randn_like(module.sinks))
    given = inputs(model, padded)
    given = {name: t[:, :33] for name, t in given.items()}
    if padded:
        given["attention_mask"][1, 25:] = 0
    model.set_attn_implementation("eager")
    wanted = model(**given)[0]
    for name in KERNELS:
        model.set_attn_implementation(name)
        assert relative(model(**given)[0], wanted) <= 2e-5
    own = native.module is not None and not native.lacks("avx2")
    told = [w for w in recwarn if issubclass(w.category, SlowPathWarning)]
    assert bool(told) != own
    if own:
        assert _tried_and_like_eager(model)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_causal_mask_counts_for_modules_that_say_they_are_not_causal(padded):
    """As the text models of images with a prefix do; "sdpa" differs when nothing is padded."""
    torch.manual_seed(0)
    config = tf.GemmaConfig(**DECODER | {"num_key_value_heads": 4}, pad_token_id=0)
    config.use_bidirectional_attention = True
    model = tf.GemmaForCausalLM(config).eval()
    given = inputs(model, padded)
    model.set_attn_implementation("eager")
    wanted = model(**given).logits
    for name in KERNELS:
        model.set_attn_implementation(name)
        found = model(**given).logits
        seen = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
        assert relative(found[seen], wanted[seen]) <= allowed(name, 0.01)


def _tried_and_like_eager(model):
    tried = [hf_attention._TRIED[m] for m in model.modules() if m in hf_attention._TRIED]
    return tried and all(all(found.values()) for found in tried)


@torch.no_grad()
def test_attention_weights_that_are_asked_for_are_given():
    model = make("llama-tied")
    ids = torch.arange(3, 23).reshape(2, 10)
    model.set_attn_implementation("eager")
    wanted = model(ids, output_attentions=True).attentions
    model.set_attn_implementation("lowbit")
    found = model(ids, output_attentions=True).attentions
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def stranger(module, query, key, value, attention_mask, scaling=None, tilt=None, **options):
    return options.get("lean"), attention_mask


class Stranger(torch.nn.Module):
    """An attention whose file says that "sdpa" computes it, and whose eager function reads options
    that no one has heard of."""

    is_causal = True

    def forward(self, *call, **options):
        return eager_attention_forward(self, *call, **options)


eager_attention_forward = stranger


class StrangerModel(tf.PreTrainedModel):
    config_class = tf.BertConfig
    _supports_sdpa = True


def plain(module, query, key, value, attention_mask, scaling=None, softcap=None, **options):
    scores = query @ key.mT * scaling * module.factor
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize("asked", [{}, {"softcap": 2.0}])
@pytest.mark.parametrize(("factor", "own"), [(1.0, True), (1.5, False), (None, False)])
@pytest.mark.parametrize("queries", [3, 20])
def test_without_sdpa_an_eager_function_is_tried_once(monkeypatch, factor, own, asked, queries):
    """Its module is served if ours gives the same; not if it scales twice, or raises when tried."""
    calls = []

    def eager(*call, **options):
        calls.append(options)
        if len(calls) == 1 and factor is None:
            raise ValueError("these shapes are strange")
        return plain(*call, **options)

    monkeypatch.setitem(globals(), "eager_attention_forward", eager)
    monkeypatch.setattr(StrangerModel, "_supports_sdpa", False)
    for found in (hf_attention._eager, hf_attention._read_by, hf_attention._supports_sdpa):
        found.cache_clear()
    module = Stranger()
    module.factor = factor or 1.0
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator) for n in (queries, 20, 20))
    allowed = torch.rand(1, 1, queries, 20, generator=generator) < 0.6
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    wanted, _ = plain(module, q, k, v, mask, scaling=0.5, **asked)
    own = own and native.module is not None and not native.lacks("avx2")
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            y, _ = attention(module, q, k, v, mask, kernels=KERNELS["lowbit"], scaling=0.5, **asked)
        assert relative(y, wanted) <= 1e-5
        assert own or noted(module)
    assert not (own and told)
    # Without and with a mask, or until it differs; then once for each call that is left to it.
    assert len(calls) == (2 if own else 3)
    for found in (hf_attention._eager, hf_attention._read_by, hf_attention._supports_sdpa):
        found.cache_clear()


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"scaling": 0.5}, True),
        ({"tilt": None, "lean": None}, True),
        ({"use_cache": True}, True),  # means nothing to it
        ({"tilt": 1.0}, False),
        ({"lean": 1.0}, False),
    ],
)
def test_options_that_only_the_eager_function_reads_are_left_to_it(options, own):
    q = query()
    if own:
        y, _ = attention(Stranger(), q, q, q, None, kernels=KERNELS["lowbit_float32"], **options)
        assert y.shape == (1, MANY_QUERIES, 2, 16)
        return
    with pytest.warns(SlowPathWarning, match="is requested"):
        lean, mask = attention(
            Stranger(), q, q, q, None, kernels=KERNELS["lowbit_float32"], **options
        )
    assert lean == options.get("lean")
    lowest = torch.finfo(torch.float32).min
    wanted = torch.full((MANY_QUERIES, MANY_QUERIES), lowest).triu(1)
    assert torch.equal(mask, wanted[None, None])


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_halves_are_off_by_one_rounding(dtype, bits, mask, queries):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, queries, 24, generator=generator).to(dtype)
    k, v = (torch.randn(2, 2, 40, 24, generator=generator).to(dtype) for _ in range(2))
    given = None
    if mask == "boolean":
        given = torch.rand(2, 1, queries, 40, generator=generator) < 0.5
    elif mask == "additive":
        given = torch.randn(2, 1, queries, 40, generator=generator).to(dtype)
    scores = (q.double() @ k.double().repeat_interleave(2, 1).mT) * 24**-0.5
    if mask == "boolean":
        scores = scores.masked_fill(~given, -torch.inf)
    elif mask == "additive":
        scores = scores + given.double()
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    oracle = weights / weights.sum(-1, keepdim=True) @ v.double().repeat_interleave(2, 1)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    y, _ = attention(module, q, k, v, given, kernels=KERNELS["lowbit_float32"], is_causal=False)
    assert y.dtype is dtype
    wanted = oracle.transpose(1, 2)
    # Half a unit of the last place, and the error of sums in float32.
    assert ((y.double() - wanted).abs() <= 2.0**-bits * wanted.abs() + 2e-6).all()
    # The other code would round the weights too.
    chosen, _ = select(KERNELS["lowbit_float32"], q, k, v, given)
    assert native.module is None or queries >= MANY_QUERIES or chosen.name != "reference"


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "llama-tied", "bart"])
def test_quantized_models_in_bfloat16_are_near_their_float32_twins(name):
    model = make(name)
    lowbit.quantize(model, "int8-dynamic", progress=False)
    given = inputs(model, False)
    given = {key: t[:, :12] for key, t in given.items()}
    wanted = model(**given)[0]
    half = make(name).bfloat16()
    lowbit.quantize(half, "int8-dynamic", progress=False)
    for implementation in ("sdpa", *KERNELS):
        half.set_attn_implementation(implementation)
        y = half(**given)[0]
        assert y.dtype is torch.bfloat16
        assert relative(y.float(), wanted) <= 0.06


# In a process of its own: the shape checks that tests put around functions cannot be traced.
COMPILED = """
import torch
import lowbit
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
                    intermediate_size=64)
model = BertModel(config).eval()
model.set_attn_implementation("lowbit")
ids, seen = torch.randint(50, (2, 40)), torch.ones(2, 40, dtype=torch.long)
seen[1, 30:] = 0
with torch.no_grad():
    wanted = model(ids, attention_mask=seen).last_hidden_state
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(ids, attention_mask=seen).last_hidden_state
assert torch.equal(y, wanted)
print("compiled")
"""


@pytest.mark.slow
def test_a_model_with_it_compiles_to_one_graph():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "compiled\n", done.stderr[-2000:]
