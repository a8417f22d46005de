"""`lowbit.compile`: the model's own results, and the model itself where a program cannot serve."""

import copy
import inspect
import threading
import warnings
import weakref

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)
from transformers.modeling_outputs import BaseModelOutput

import lowbit
from lowbit.errors import RowError, UsageError
from lowbit.fallbacks import noted
from lowbit.formats import StaticScale
from lowbit.kernels import native
from lowbit.runtime.operations import Attention, ByTorch
from lowbit.runtime.programs import Compiled

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason())

SMALL = {
    "vocab_size": 60,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
}
SPECIAL = {f"{name}_token_id": n for n, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
T5 = {"vocab_size": 60, "d_model": 96, "d_kv": 24, "d_ff": 160, "num_layers": 2, "num_heads": 4}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SMALL)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=60, dim=96, n_layers=2, n_heads=4, hidden_dim=160)
    ),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(
            **SMALL,
            **SPECIAL,
            local_attention=8,
            global_attn_every_n_layers=2,
        )
    ),
    "t5": lambda: T5EncoderModel(T5Config(**T5)),
    "gated t5": lambda: T5EncoderModel(T5Config(**T5, feed_forward_proj="gated-gelu")),
    "clip": lambda: CLIPTextModel(CLIPTextConfig(**SMALL, **SPECIAL)),
    "nomic": lambda: NomicBertModel(NomicBertConfig(**SMALL)),
    "sequences": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "tokens": lambda: BertForTokenClassification(BertConfig(**SMALL)),
}
RECIPES = ("int8-dynamic", "int4-all-dynamic", "int8", "bcq2-dynamic")


def made(name, recipe="int8-dynamic"):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    return model


def batch(*lengths, most=None):
    """Ids and the mask of sequences padded on the right."""
    most = most or max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(5, 60, (len(lengths), most), generator=generator)
    mask = (torch.arange(most) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}


@torch.no_grad()
def called(model, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model(**inputs)


@torch.no_grad()
def aside(model, inputs):
    """By the model, whatever is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**inputs)


def programs(model):
    return list(model.forward.programs.made.values())


def assert_same(got, wanted, mask):
    """To 2e-3 of all: programs sum in another order, so that a code of 8 bits may fall on the other
    side of a half."""
    assert type(got) is type(wanted) and list(got) == list(wanted)
    for name, value in wanted.items():
        there = value
        mine = got[name]
        if value.shape[:2] == mask.shape:
            assert not mine[mask == 0].any()
            mine, there = mine[mask == 1], value[mask == 1]
        assert mine.shape == there.shape
        assert (mine - there).norm() <= 2e-3 * there.norm()


@pytest.mark.parametrize("name", MODELS)
def test_a_program_gives_what_the_model_gives(name):
    model = made(name)
    compiled = lowbit.compile(copy.deepcopy(model))
    for inputs in (batch(7, 7), batch(1), batch(9), batch(30, 4, 1, 17), batch(3, 5, most=8)):
        assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])
    assert [type(p) for p in programs(compiled)] == [Compiled]


@pytest.mark.parametrize("name", ["bert", "gated t5", "clip", "nomic"])
def test_float_models_have_programs_too(name):
    model = made(name, None)
    compiled = lowbit.compile(copy.deepcopy(model))
    for inputs in (batch(9), batch(30, 4, 1, 17)):
        got, wanted = called(compiled, inputs)[0], aside(model, inputs)[0]
        there = inputs["attention_mask"].bool()
        assert torch.allclose(got[there], wanted[there], rtol=1e-5, atol=1e-5)
    (program,) = programs(compiled)
    assert {op.name for op in program.lowered.program.by_torch} >= {"linear.default"}


def test_what_torch_computes_is_let_go_when_it_was_read(monkeypatch):
    model = lowbit.compile(made("bert", None))
    called(model, batch(9))
    alive, most = weakref.WeakSet(), []
    run = ByTorch.run

    def watched(self, values, call):
        run(self, values, call)
        alive.add(values[self.y])
        most.append(len(alive))

    monkeypatch.setattr(ByTorch, "run", watched)
    called(model, batch(9))
    assert len(most) == 12 and max(most) <= 4  # queries, keys, values, and what is added


@pytest.mark.parametrize("name", ["t5", "clip", "nomic"])
def test_norms_gates_and_functions_that_are_spelled_out_are_native(name):
    model = lowbit.compile(made(name))
    called(model, batch(9, 4))
    (program,) = programs(model)
    assert program.lowered.program.by_torch == []


def test_layers_that_stay_float_run_between_native_parts():
    torch.manual_seed(0)
    model = MODELS["bert"]().eval()
    rules = [
        {"match": "*.layer.1.output.dense", "keep": True},
        {"match": "@linear", "scheme": "absmax", "bits": 8, "activations": "dynamic"},
    ]
    lowbit.quantize(model, {"name": "mine", "rules": rules}, progress=False)
    compiled = lowbit.compile(copy.deepcopy(model))
    for inputs in (batch(9), batch(30, 4, 1, 17)):
        assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])
    (program,) = programs(compiled)
    (between,) = program.lowered.program.by_torch
    assert between.name == "linear.default"
    assert "encoder.layer.1" in "".join(map(str, program.lowered.program.operations[-3].names))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_kind_of_codes_runs(recipe):
    model = made("bert", recipe)
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(12, 5, 1)
    assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])


SIZES = {k: v for k, v in SMALL.items() if k != "vocab_size"}
DINO = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
# A code near a half decides whether a result is within the bound: always the same numbers.
SEEDED = torch.Generator().manual_seed(0)
OTHERS = {
    "pictures": (
        lambda: ViTModel(ViTConfig(image_size=16, patch_size=4, **SIZES)),
        {"pixel_values": torch.randn(3, 3, 16, 16, generator=SEEDED)},
    ),
    "scaled layers": (
        lambda: Dinov2Model(Dinov2Config(image_size=16, patch_size=4, **DINO)),
        {"pixel_values": torch.randn(3, 3, 16, 16, generator=SEEDED)},
    ),
    "a convolution first": (
        lambda: Wav2Vec2Model(Wav2Vec2Config(**SMALL)),
        {"input_values": torch.randn(2, 4000, generator=SEEDED)},
    ),
    "sound": (
        lambda: (
            WhisperModel(
                WhisperConfig(
                    d_model=96,
                    encoder_layers=2,
                    decoder_layers=1,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=160,
                    decoder_ffn_dim=96,
                    max_source_positions=10,
                    num_mel_bins=8,
                    vocab_size=60,
                    pad_token_id=0,
                )
            ).encoder
        ),
        {"input_features": torch.randn(2, 8, 20, generator=SEEDED)},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pictures_and_sound_run(name):
    make, inputs = OTHERS[name]
    torch.manual_seed(0)
    model = make().eval()
    lowbit.quantize(model, "int8-dynamic", progress=False)
    compiled = lowbit.compile(copy.deepcopy(model))
    for some in (inputs, {k: t[:1] for k, t in inputs.items()}):
        assert_same(called(compiled, some), aside(model, some), torch.zeros(0, 0))
    (program,) = programs(compiled)
    attentions = [op for op in program.lowered.program.operations if isinstance(op, Attention)]
    assert len(attentions) == 2


def test_static_activations_run():
    model = BertModel(BertConfig(**SMALL)).eval()
    lowbit.quantize(model, "int8-static", calibration=torch.randint(5, 60, (4, 9)), progress=False)
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(12, 5, 1)
    assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])


def test_native_code_computes_what_operations_mean():
    model = lowbit.compile(made("mpnet"))
    inputs = batch(30, 4, 1, 17)
    ran = called(model, inputs)
    (compiled,) = programs(model)
    program = type(compiled.lowered.program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "run", program.interpret)
        meant = called(model, inputs)
    assert_same(ran, meant, inputs["attention_mask"])


@pytest.mark.parametrize("attention", ["lowbit", "sdpa", "eager"])
def test_whatever_attention_is_set(attention):
    model = made("bert")
    model.set_attn_implementation(attention)
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(9, 4)
    assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])
    assert [type(p) for p in programs(compiled)] == [Compiled]


def test_without_a_mask_all_tokens_count():
    model = made("bert")
    compiled = lowbit.compile(copy.deepcopy(model))
    ids = {"input_ids": batch(6, 6)["input_ids"]}
    assert_same(called(compiled, ids), aside(model, ids), torch.ones(2, 6))


def test_holes_and_padding_on_the_left_give_what_the_model_gives():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL), add_pooling_layer=False).eval()
    lowbit.quantize(model, "int8-dynamic", progress=False)
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(8, 8, 8)
    inputs["attention_mask"][0, :3] = 0
    inputs["attention_mask"][1, 2:5] = 0
    assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])


def test_padding_that_a_classifier_reads_goes_to_the_model():
    model = made("sequences")
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(8, 8)
    inputs["attention_mask"][0, :3] = 0
    assert torch.equal(aside(compiled, inputs).logits, aside(model, inputs).logits)
    assert any("padding" in reason for reason in noted(compiled))


def goes_to_the_model(model, inputs, about):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = model(**inputs)
    assert any(about in reason for reason in noted(model)), dict(noted(model))
    return value


def test_gradients_training_hooks_and_autocast_go_to_the_model():
    model, inputs = lowbit.compile(made("bert")), batch(5, 3)
    assert goes_to_the_model(model, inputs, "gradients").last_hidden_state.requires_grad
    with torch.no_grad():
        model.train()
        goes_to_the_model(model, inputs, "training")
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            goes_to_the_model(model, inputs, "autocast")
        seen = []
        hook = model.encoder.layer[0].register_forward_hook(lambda *_: seen.append(1))
        goes_to_the_model(model, inputs, "hooks")
        assert seen
        hook.remove()
    assert programs(model) == []
    called(model, inputs)
    assert [type(p) for p in programs(model)] == [Compiled]


def test_a_model_that_no_program_serves_says_why():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=48, n_layer=1, n_head=3, n_positions=64)
    model = GPT2Model(config).eval()
    lowbit.quantize(model, "int8-dynamic", progress=False)
    compiled, inputs = lowbit.compile(copy.deepcopy(model)), batch(6, 4)
    with torch.no_grad():
        got = goes_to_the_model(compiled, inputs, "cannot follow this model").last_hidden_state
    assert torch.equal(got, aside(model, inputs).last_hidden_state)


def test_changed_weights_count():
    model, inputs = lowbit.compile(made("bert")), batch(9, 4)
    called(model, inputs)
    with torch.no_grad():
        norm = model.encoder.layer[1].output.LayerNorm
        norm.weight.mul_(2)
    doubled = called(model, inputs)
    norm.weight = torch.nn.Parameter(norm.weight / 2)
    halved = called(model, inputs)
    states = doubled.last_hidden_state, halved.last_hidden_state
    there = inputs["attention_mask"].bool()
    bias = norm.bias
    assert torch.allclose(states[0][there] - bias, 2 * (states[1][there] - bias), atol=1e-6)


def test_changed_numbers_of_static_layers_count():
    model, inputs = made("bert", None), batch(9, 4)
    lowbit.quantize(model, "int8-static", calibration=torch.randint(5, 60, (4, 9)), progress=False)
    compiled = lowbit.compile(copy.deepcopy(model))
    called(compiled, inputs)
    for each in (model, compiled):
        layer = each.encoder.layer[1].output.dense
        with torch.no_grad():
            layer.bias.add_(1)
        (scale,) = layer.static_scales()
        layer.set_static(StaticScale(scale.scale * 4, scale.zero_point))
    there = inputs["attention_mask"].bool()
    got, wanted = called(compiled, inputs)[0][there], aside(model, inputs)[0][there]
    assert torch.allclose(got, wanted, atol=1e-4)


def test_replaced_modules_count():
    model, inputs = lowbit.compile(made("bert")), batch(9, 4)
    before = called(model, inputs)[0]
    other = MODELS["bert"]().eval()
    lowbit.quantize(other, "int8-dynamic", progress=False)
    model.encoder.layer[1] = other.encoder.layer[1]
    wanted = aside(other, inputs)  # warms nothing of the model
    assert wanted[0].shape == before.shape
    changed = called(model, inputs)[0]
    del model.__dict__["forward"]
    assert_same({"x": changed}, {"x": aside(model, inputs)[0]}, inputs["attention_mask"])
    assert not torch.equal(changed, before)


@pytest.mark.parametrize("recipe", [None, "int8-all-dynamic"])
def test_changed_attributes_and_modules_without_tensors_count(recipe):
    """The numbers of norms, attention and configs, functions between layers."""
    torch.manual_seed(0)
    model, inputs = BertModel(BertConfig(**SMALL, initializer_range=0.3)).eval(), batch(9, 4)
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    compiled = lowbit.compile(copy.deepcopy(model))
    changes = [
        lambda m: setattr(m.encoder.layer[0].intermediate, "intermediate_act_fn", torch.nn.ReLU()),
        lambda m: setattr(m.encoder.layer[0].output.LayerNorm, "eps", 5.0),
        lambda m: setattr(m.encoder.layer[1].attention.self, "scaling", 3.0),
    ]
    before = called(compiled, inputs)[0]
    for change in changes:
        for each in (model, compiled):
            change(each)
        after = called(compiled, inputs)[0]
        assert (after - before).norm() > 0.01 * before.norm()
        wanted = aside(model, inputs)[0] * inputs["attention_mask"][..., None]
        assert_same({"x": after}, {"x": wanted}, inputs["attention_mask"])
        before = after


def test_labels_of_padding_go_to_the_model():
    """Softmax does not see a number that is added to all columns."""
    model = made("tokens")
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(9, 4)
    called(compiled, inputs)
    inputs["labels"] = torch.ones_like(inputs["input_ids"])
    assert torch.equal(aside(compiled, inputs).loss, aside(model, inputs).loss)
    assert any("padded tokens" in reason for reason in noted(compiled))


def test_a_model_may_be_quantized_afterwards():
    model, inputs = made("bert", None), batch(9, 4)
    compiled = lowbit.compile(copy.deepcopy(model))
    called(compiled, inputs)
    for each in (model, compiled):
        lowbit.quantize(each, "int8-dynamic", progress=False)
    assert_same(called(compiled, inputs), aside(model, inputs), inputs["attention_mask"])
    assert lowbit.explain(compiled).programs[""][0].by_torch == {}


def test_a_dequantized_model_is_a_float_program():
    model, inputs = lowbit.compile(made("bert")), batch(9, 4)
    before = called(model, inputs)[0]
    model.dequantize()
    value = called(model, inputs)[0]
    del model.__dict__["forward"]
    there = inputs["attention_mask"].bool()
    assert torch.allclose(value[there], aside(model, inputs)[0][there], rtol=1e-5, atol=1e-5)
    assert not torch.equal(value, before)


def test_copies_and_other_dtypes_have_programs_of_their_own():
    model, inputs = lowbit.compile(made("bert")), batch(9, 4)
    first = called(model, inputs)
    copied = copy.deepcopy(model)
    assert copied.forward.model is copied and programs(copied) == []
    assert torch.equal(called(copied, inputs)[0], first[0])
    half = copied.to(torch.bfloat16)
    assert aside(half, inputs)[0].dtype is torch.bfloat16
    assert torch.equal(called(model, inputs)[0], first[0])


def test_ids_out_of_range_raise_as_in_the_model():
    model, inputs = lowbit.compile(made("bert", "int8-all-dynamic")), batch(5, 3)
    called(model, inputs)
    inputs["input_ids"][0, 0] = 60
    with pytest.raises(RowError, match="id 60 leaves a table of 60 rows"), torch.no_grad():
        model(**inputs)


def test_threads_may_call_at_once():
    model = lowbit.compile(made("bert"))
    cases = [batch(n, 1 + n // 2) for n in range(2, 10)]
    wanted = [called(model, inputs)[0] for inputs in cases]
    got = [None] * len(cases)

    def run(number):
        for _ in range(5):
            with torch.no_grad():
                got[number] = model(**cases[number])[0]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_what_a_model_takes_can_still_be_asked():
    model = made("bert")
    before = inspect.signature(model.forward)
    assert inspect.signature(lowbit.compile(model).forward) == before


def test_positional_arguments_run_the_same_program():
    model, inputs = lowbit.compile(made("bert")), batch(6, 3)
    by_name = called(model, inputs)
    with torch.no_grad():
        by_place = model(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(by_name[0], by_place[0])
    assert len(programs(model)) == 1


def test_a_program_can_be_read():
    model = lowbit.compile(made("bert"))
    called(model, batch(4, 2))
    (compiled,) = programs(model)
    lines = str(compiled.lowered.program).splitlines()
    assert "m5, m6, m7 = linear m4 by encoder.layer.0.attention.self.query" in lines[5]
    assert lines[6].endswith("attention m5, m6, m7 (4 heads of 24)")
    assert lines[9].endswith("encoder.layer.0.intermediate.dense, then gelu")


def test_ids_may_lie_anywhere_in_memory():
    model = lowbit.compile(made("bert"))
    inputs = batch(8)
    wanted = called(model, inputs)[0]
    wide = torch.stack([inputs["input_ids"], inputs["input_ids"] * 0], -1).flatten(1)
    assert torch.equal(called(model, {**inputs, "input_ids": wide[:, ::2]})[0], wanted)


def test_a_mask_of_another_length_goes_to_the_model():
    model, inputs = lowbit.compile(made("bert")), batch(8, 5)
    inputs["attention_mask"] = inputs["attention_mask"][:, :6]
    with torch.no_grad(), pytest.raises(Exception, match="size|shape|expand|broadcast"):
        goes_to_the_model(model, inputs, "other lengths")


class Writing(BertModel):
    """Writes zeros over its first token, through a view."""

    def forward(self, input_ids, attention_mask=None):
        states = super().forward(input_ids, attention_mask).last_hidden_state * 1
        states[:, 0].fill_(0)
        return BaseModelOutput(states)


class Counting(BertModel):
    """Counts its calls in a buffer."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, input_ids, attention_mask=None):
        self.calls.add_(1)
        return BaseModelOutput(super().forward(input_ids, attention_mask).last_hidden_state)


class Drawing(BertModel):
    def forward(self, input_ids, attention_mask=None):
        states = super().forward(input_ids, attention_mask).last_hidden_state
        return BaseModelOutput(states + torch.rand_like(states))


def test_writing_in_place_counts():
    model = Writing(BertConfig(**SMALL)).eval()
    compiled, inputs = lowbit.compile(copy.deepcopy(model)), batch(9, 4)
    states, there = called(compiled, inputs)[0], inputs["attention_mask"].bool()
    assert [type(p) for p in programs(compiled)] == [Compiled]
    assert torch.allclose(states[there], aside(model, inputs)[0][there], atol=1e-5)
    assert not states[:, 0].any()


def test_a_model_that_writes_into_its_buffers_is_called_as_it_is():
    compiled, inputs = lowbit.compile(Counting(BertConfig(**SMALL)).eval()), batch(9, 4)
    for _ in range(3):
        aside(compiled, inputs)
    assert compiled.calls.item() == 3
    assert any("writes into" in reason for reason in noted(compiled))


def test_random_numbers_are_the_model_s_own():
    model = Drawing(BertConfig(**SMALL)).eval()
    compiled, inputs = lowbit.compile(copy.deepcopy(model)), batch(9, 4)
    seen = []
    for each in (compiled, model):
        torch.manual_seed(1)
        seen.append(aside(each, inputs)[0])
    assert torch.equal(*seen)
    assert any("draws random numbers" in reason for reason in noted(compiled))


def test_a_forward_that_was_replaced_is_refused():
    model = made("bert")
    model.forward = lambda **_: None
    with pytest.raises(UsageError, match="has been replaced already"):
        lowbit.compile(model)


def test_hidden_states_of_all_layers_can_be_asked_for():
    model = made("bert")
    compiled = lowbit.compile(copy.deepcopy(model))
    inputs = batch(9, 4) | {"output_hidden_states": True}
    got, wanted = called(compiled, inputs), aside(model, inputs)
    there = inputs["attention_mask"].bool()
    assert len(got.hidden_states) == len(wanted.hidden_states) == 3
    for a, b in zip(got.hidden_states, wanted.hidden_states, strict=True):
        assert (a[there] - b[there]).norm() <= 2e-3 * b[there].norm()
    # The hooks that transformers leaves are no reason to run the model itself.
    called(compiled, batch(9, 4))
    called(compiled, inputs)
    assert [type(p) for p in programs(compiled)] == [Compiled] * 2 and not noted(compiled)


def test_what_holds_no_transformers_model_is_refused():
    with pytest.raises(UsageError, match="Linear holds no transformers model to compile"):
        lowbit.compile(torch.nn.Linear(2, 2))


def test_a_wrapper_is_compiled_inside():
    inner = made("distilbert")
    outer = lowbit.compile(torch.nn.Sequential(inner))
    assert outer[0] is inner
    called(inner, batch(4, 2))
    assert [type(p) for p in programs(inner)] == [Compiled]


def test_a_copy_is_explained_by_its_own_programs():
    model, inputs = lowbit.compile(made("bert")), batch(9, 4)
    called(model, inputs)
    other = copy.deepcopy(model)
    assert lowbit.explain(other).programs == {}
    called(other, inputs)
    assert lowbit.explain(other).programs[""][0].operations
    assert list(lowbit.explain(model).programs) == [""]
