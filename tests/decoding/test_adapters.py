"""What decoding takes from inside transformers is still there, called as it is called.

Each failure says in one sentence what changed; decoding/adapters.py is where to mend it.
"""

import inspect

import pytest
import torch
import transformers
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMixin

from lowbit.decoding import adapters
from lowbit.nn.hooks import has_hooks
from tests.models import make

VERSION = f"transformers {transformers.__version__}"
IDS = torch.tensor([[5, 6, 7]])


def parameters(function):
    return inspect.signature(inspect.unwrap(function)).parameters


@pytest.fixture
def given(request):
    """What `generate` gives to a callable `custom_generate`."""
    seen = {}

    def search(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        seen.update(locals())
        return input_ids

    make("gpt2").generate(IDS, custom_generate=search, max_new_tokens=2, pad_token_id=3)
    return seen


def test_generate_hands_its_search_to_a_callable(given):
    assert given, f"{VERSION}: generate no longer calls a callable custom_generate"
    assert torch.equal(given["input_ids"], IDS), f"{VERSION}: custom_generate gets other ids"
    assert type(given["kwargs"].get(adapters.CACHE)) is DynamicCache, (
        f"{VERSION}: the cache no longer comes as {adapters.CACHE} to custom_generate, which gets"
        f" {sorted(given['kwargs'])}"
    )


def test_the_cache_has_one_name_in_generate_the_searches_and_the_models():
    prepares = parameters(GenerationMixin.prepare_inputs_for_generation)
    assert adapters.CACHE in prepares, f"{VERSION}: the cache's argument has another name"
    for name in ("gpt2", "llama-tied", "marian", "bart"):
        assert adapters.CACHE in parameters(type(make(name)).forward), (
            f"{VERSION}: the forward of {name} no longer takes its cache as {adapters.CACHE}"
        )


@pytest.mark.parametrize("search", sorted(set(adapters.SEARCHES.values())))
def test_the_searches_are_methods_of_the_same_arguments(search):
    method = getattr(GenerationMixin, search, None)
    assert method is not None, f"{VERSION}: a model has no {search} any more"
    assert {
        "input_ids",
        "logits_processor",
        "stopping_criteria",
        "generation_config",
        "model_kwargs",
    } <= parameters(method).keys(), f"{VERSION}: {search} takes other arguments"
    used = inspect.getsource(method)
    for step in ("_prefill", "prepare_inputs_for_generation", "_update_model_kwargs_for_"):
        assert f"self.{step}" in used, f"{VERSION}: {search} no longer calls {step}"


def test_the_token_behind_ended_rows_is_prepared(given):
    config = given["generation_config"]
    assert hasattr(config, "_pad_token_tensor"), f"{VERSION}: no _pad_token_tensor any more"
    assert adapters.padding_token(config) == 3
    config._pad_token_tensor = None
    assert adapters.padding_token(config) == 0


def test_the_name_of_the_attention_is_the_one_that_was_set():
    model = make("gpt2")
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert adapters.attention(model) == name, f"{VERSION}: another place for the attention"


def test_hooks_that_transformers_leaves_behind_are_told_from_those_of_people():
    model = make("llama-tied")
    model(IDS, output_hidden_states=True)
    hooked = [m for m in model.modules() if m._forward_hooks]
    assert hooked, f"{VERSION}: hidden states are no longer collected by hooks that stay"
    assert not any(map(has_hooks, hooked)), f"{VERSION}: its hooks come from elsewhere"
    hooked[0].register_forward_hook(lambda *_: None)
    assert has_hooks(hooked[0])


def test_the_prompt_is_read_into_the_cache_and_the_next_token_prepared():
    model, cache = make("gpt2"), DynamicCache()
    mask = torch.tensor([[0, 1, 1]])
    given = {adapters.CACHE: cache, "attention_mask": mask, "use_cache": True}
    output = adapters.prefilled(model, IDS, GenerationConfig(), given)
    assert output.logits.shape[:2] == (1, 3), f"{VERSION}: _prefill gives another output"
    assert cache.get_seq_length() == 3, f"{VERSION}: _prefill leaves the cache empty"
    longer = torch.tensor([[5, 6, 7, 9]])
    inputs = adapters.next_inputs(model, longer, output, given)
    assert inputs["input_ids"].tolist() == [[9]], f"{VERSION}: not one token is prepared"
    assert inputs["attention_mask"].tolist() == [[0, 1, 1, 1]], f"{VERSION}: the mask does not grow"
    assert inputs[adapters.CACHE] is cache, f"{VERSION}: another cache is prepared"
    assert given["attention_mask"] is mask


def test_a_cache_that_keeps_everything_is_told_from_others():
    class Forgetful(DynamicLayer):
        pass

    class Cached(DynamicCache):
        pass

    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for name in ("gpt2", "llama-tied"):
        assert adapters.unusual(DynamicCache(config=make(name).config)) == set()
    assert adapters.unusual(DynamicCache()) == adapters.unusual(both) == set()
    assert adapters.unusual(Cached()) == {"Cached"}
    assert adapters.unusual(Cache(layer_class_to_replicate=Forgetful)) == {"Cache"}
    some = DynamicCache()
    some.layers = [DynamicLayer(), Forgetful()]
    assert adapters.unusual(some) == {"Forgetful"}
    assert adapters.unusual(EncoderDecoderCache(DynamicCache(), some)) == {"Forgetful"}


def test_a_callable_search_gets_no_tokenizer_but_the_stopping_criteria_do():
    assert adapters.POSITIONAL[:2] == ("inputs", "generation_config"), (
        f"{VERSION}: generate has other positional arguments: {adapters.POSITIONAL}"
    )
    assert "tokenizer" in parameters(GenerationMixin._get_stopping_criteria), (
        f"{VERSION}: _get_stopping_criteria takes no tokenizer"
    )
    assert "tokenizer" in parameters(GenerationMixin.heal_tokens), (
        f"{VERSION}: heal_tokens takes no tokenizer"
    )
