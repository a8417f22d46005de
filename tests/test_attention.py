"""The attention "lowbit": near float32's where it computes in bfloat16, equal to it elsewhere."""

import pytest
import torch

import lowbit
from lowbit.attention import LEAST_QUERIES, choose
from lowbit.kernels import native
from lowbit.kernels.selection import VARIABLE
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
    # Elsewhere than on tiles it is float32's own.
    assert (error > 0) == (native.lacks("amx") is None)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bart"])
def test_one_token_at_a_time_is_as_in_float32(name):
    model = make(name)
    ids = torch.arange(3, 19).reshape(2, 8) % VOCABULARY
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(ids, **options)
    model.set_attn_implementation("lowbit")
    assert torch.equal(model.generate(ids, **options), wanted)


@torch.no_grad()
def test_a_model_quantized_in_place_takes_it_and_leaves_the_caller_alone():
    model = make("bert")
    config = model.config
    lowbit.quantize(model, "int8-dynamic", progress=False)
    model.set_attn_implementation("lowbit")
    blocks = [layer.attention.self for layer in model.encoder.layer]
    assert {block.config._attn_implementation for block in blocks} == {"lowbit"}
    assert config._attn_implementation == "sdpa"


def query(queries=LEAST_QUERIES, dtype=torch.float32):
    return torch.randn(1, 2, queries, 16, dtype=dtype)


@has_tiles
class TestChoice:
    def why(self, *args, **kwargs):
        kernel, why = choose(*args, **kwargs)
        return kernel.name, why

    def test_tiles_serve_many_queries_of_float32(self):
        assert self.why(query(), query(), query())[0] == "amx"

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            ((query(LEAST_QUERIES - 1),) * 3, f"{LEAST_QUERIES - 1} queries are fewer"),
            ((query(dtype=torch.float16),) * 3, "float16 already"),
            ((query().to("meta"),) * 3, "on meta, not on the CPU"),
            ((query(), query(), query().requires_grad_()), "gradients"),
            ((query(), query(), query(), 0.1), "dropout 0.1"),
        ],
    )
    def test_what_they_do_not_serve_is_float32_with_the_reason(self, call, reason):
        name, why = self.why(*call)
        assert name == "reference" and reason in why

    def test_it_can_be_forbidden(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "reference")
        assert self.why(query(), query(), query()) == (
            "reference",
            f"reference: forced by {VARIABLE}",
        )
