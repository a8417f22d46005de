"""Every order of what people do with a model: quantize, save, load, dequantize, cast, copy, pickle,
resize, tie. After each step the model computes what a plain float twin computes, whose weights went
through a rounding that shares no code with lowbit; or the step is refused in one sentence, and
nothing has changed.
"""

import copy
import pickle
import tempfile
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModel,
    FunnelConfig,
    FunnelForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

import lowbit
from lowbit.nn import is_quantized
from tests.models import MODELS, VOCABULARY, output

SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=96,
)
# Tied and untied; scaled and factorized tables; transposed weights; no parameter but matrices; one
# whose own initialization reads attributes of the modules that are replaced.
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: MODELS[name] for name in ("bert-classifier", "bert-mlm", "gpt2", "t5", "bart")},
    **{name: MODELS[name] for name in ("marian", "distilbert", "llama-tied", "llama-untied")},
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=32, attn_implementation="eager")
    ),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**SMALL, pad_token_id=0, eos_token_id=1)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=32, max_position_embeddings=64)
    ),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SMALL, embedding_size=32)),
    "funnel": lambda: FunnelForMaskedLM(
        FunnelConfig(
            vocab_size=VOCABULARY,
            block_sizes=[1, 1],
            num_decoder_layers=1,
            d_model=64,
            n_head=2,
            d_head=32,
            d_inner=96,
        )
    ),
}
RECIPES = {"int8": (nn.Linear, Conv1D), "int8-all": (nn.Linear, Conv1D, nn.Embedding)}


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] through codes −127 … 127 and one float16 scale per row, by NumPy."""
    w = weight.detach().float().numpy()
    scale = (np.abs(w).max(1, keepdims=True) / np.float32(127)).astype(np.float16)
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    codes = np.clip(np.rint(w / scale), -127, 127)
    return torch.from_numpy(codes * scale)


def round_twin(twin: PreTrainedModel, names: set[str]) -> None:
    """Round the weights of the modules `names`; a weight that two share is rounded once."""
    done: set[int] = set()
    for name in names:
        module = twin.get_submodule(name)
        if id(module.weight) in done:
            continue
        done.add(id(module.weight))
        with torch.no_grad():
            turned = isinstance(module, Conv1D)
            values = rounded(module.weight.T if turned else module.weight)
            module.weight.copy_(values.T if turned else values)


class Lifecycle(RuleBasedStateMachine):
    """`model` is what lowbit works on, `twin` what it must equal."""

    @initialize(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 3))
    def begin(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = KINDS[name]().eval()
        self.twin = copy.deepcopy(self.model)
        self.recipe: str | None = None

    @precondition(lambda self: self.recipe is None)
    @rule(recipe=st.sampled_from(sorted(RECIPES)))
    def quantize(self, recipe: str) -> None:
        result = lowbit.quantize(self.model, recipe, progress=False)
        names = {d.name for d in result.plan.quantized}
        kinds = {type(self.twin.get_submodule(name)).__mro__ for name in names}
        assert names and all(set(kind) & set(RECIPES[recipe]) for kind in kinds)
        round_twin(self.twin, names)
        self.recipe = recipe

    @rule()
    def save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)

    @rule(shard=st.sampled_from(["20KB", "1GB"]))
    def save_and_load(self, shard: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, max_shard_size=shard)
            self.model = type(self.model).from_pretrained(folder)

    @rule()
    def save_what_another_class_opens(self) -> None:
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            self.model.save_pretrained(first)
            base = AutoModel.from_pretrained(first)
            base.save_pretrained(second)
            again = AutoModel.from_pretrained(second)
            assert torch.equal(output(base), output(again))
            assert is_quantized(again) == (self.recipe is not None)

    @precondition(lambda self: self.recipe is not None)
    @rule()
    def dequantize(self) -> None:
        self.model = self.model.dequantize()
        assert not is_quantized(self.model)
        assert not [name for name, b in self.model.named_buffers() if b.is_meta]
        assert self.model.state_dict().keys() == self.twin.state_dict().keys()
        self.recipe = None

    @precondition(lambda self: self.recipe is not None)
    @rule(recipe=st.sampled_from(sorted(RECIPES)))
    def quantize_twice(self, recipe: str) -> None:
        with pytest.raises(lowbit.InputError, match="already quantized") as raised:
            lowbit.quantize(self.model, recipe, progress=False)
        assert "\n" not in str(raised.value)

    @rule()
    def deepcopy(self) -> None:
        self.model = copy.deepcopy(self.model)

    @rule()
    def pickle(self) -> None:
        self.model = pickle.loads(pickle.dumps(self.model))

    @rule()
    def move(self) -> None:
        self.model = self.model.to("cpu").to(torch.float64).to(torch.float32)

    @rule()
    def tie_weights(self) -> None:
        self.model.tie_weights()

    @rule(more=st.sampled_from([0, 8]))
    def resize_token_embeddings(self, more: int) -> None:
        size = self.twin.get_input_embeddings().weight.shape[0] + more
        if self.recipe == "int8-all":
            with pytest.raises(lowbit.UsageError, match="dequantize") as raised:
                self.model.resize_token_embeddings(size)
            assert "\n" not in str(raised.value)
            return
        for model in (self.model, self.twin):
            torch.manual_seed(0)
            model.resize_token_embeddings(size, mean_resizing=False)

    @invariant()
    def the_model_computes_what_its_twin_does(self) -> None:
        if not hasattr(self, "model"):
            return
        assert is_quantized(self.model) == (self.recipe is not None)
        found, expected = output(self.model), output(self.twin)
        assert found.shape == expected.shape and torch.isfinite(expected).all()
        assert (found - expected).norm() <= 1e-5 * expected.norm()


Lifecycle.TestCase.settings = settings(
    max_examples=settings().max_examples // 4, stateful_step_count=8, deadline=None
)
test_every_order_of_steps = pytest.mark.filterwarnings("ignore")(Lifecycle.TestCase)
