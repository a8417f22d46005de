"""Gradient checkpointing computes parts of a model twice, and changes nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from lowbit.qat.passes import Pass, Passes
from lowbit.qat.prepare import QatOptions, prepare_qat
from tests.combinations import some

SIZES = dict(
    vocab_size=120,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    initializer_range=0.2,
)
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    # Two blocks share each layer.
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(embedding_size=16, **SIZES)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def whole(model):
    """All of the model as one checkpoint, beside those of its blocks if there are such."""
    return lambda ids: checkpoint(model, ids, use_reentrant=False)


def blocks(use_reentrant):
    def change(model):
        kwargs = {"use_reentrant": use_reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        if use_reentrant:
            model.enable_input_require_grads()
        return model

    return change


WAYS = {
    "blocks": blocks(False),
    "blocks, reentrant": blocks(True),
    "whole": whole,
    "nested": lambda model: whole(blocks(False)(model)),
}


def trained(name, way, recipe, options, together):
    """Losses and the state after two steps of two micro-batches each."""
    torch.manual_seed(0)
    model = MODELS[name]()
    prepare_qat(model, recipe, options)
    call = way(model.train())
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.05), []
    for step in range(2):
        optimizer.zero_grad()
        torch.manual_seed(step)
        own = []
        for micro in range(2):
            generator = torch.Generator().manual_seed(2 * step + micro)
            ids = torch.randint(3, 120, (2, 7), generator=generator)
            own.append(call(ids)[0].square().sum() * (1 + micro))
            # A look in between, which counts nothing.
            model.eval()
            with torch.no_grad():
                model(ids - micro)
            model.train()
        for loss in [sum(own)] if together else own:
            loss.backward()
        optimizer.step()
        losses += [loss.item() for loss in own]
    return losses, model.state_dict()


MOVING = QatOptions("clipped", "ema", {"decay": 0.9}, start=1)
CASES = [
    *(("bert", way, "int8-all-static", MOVING) for way in WAYS),
    ("albert", "whole", "int8-all-static", MOVING),
    ("bert", "blocks", "int4-static", QatOptions("lsq", "learned")),
    ("bert", "blocks, reentrant", "int8-static", QatOptions(ranges="mse", start=3)),
    ("bert", "whole", "int8-static", QatOptions(ranges="percentile")),
    ("bert", "nested", "int8-requantized", QatOptions(ranges="minmax", symmetric=True, start=2)),
    ("bert", "whole", "int4-all-dynamic", QatOptions("lsq", start=3)),
]


@pytest.mark.parametrize(("case", "together"), some(CASES, [False, True]))
def test_losses_ranges_and_counts_are_those_without_checkpoints(case, together):
    name, way, recipe, options = case
    losses, state = trained(name, lambda model: model, recipe, options, together)
    own_losses, own_state = trained(name, WAYS[way], recipe, options, together)
    assert own_losses == losses
    assert state.keys() == own_state.keys()
    for key, value in state.items():
        assert torch.equal(own_state[key], value), key


def test_each_forward_pass_counts_once_and_looks_do_not():
    torch.manual_seed(0)
    model = MODELS["bert"]()
    prepare_qat(model, "int8-static")
    layers, ids = model.bert.encoder.layer, torch.arange(6)[None]
    blocks(True)(model.train())
    losses = [model(ids)[0].sum() for _ in range(2)]
    model.eval()(ids)
    model.train()
    losses[0].backward()
    for each in (layer.output.dense for layer in layers):
        assert int(each.steps) == int(each.input_quantizer.seen) == 2


def test_a_graph_that_is_kept_is_recomputed_alike_each_time():
    torch.manual_seed(0)
    model = MODELS["bert"]()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    prepare_qat(model, "int8-static", QatOptions(ranges="ema", range_options={"decay": 0.5}))
    blocks(False)(model.train())
    first = model(torch.arange(6)[None])[0].sum()
    model(torch.arange(50, 90)[None])
    weight = model.bert.encoder.layer[0].output.dense.weight
    found = [torch.autograd.grad(first, weight, retain_graph=True)[0] for _ in range(3)]
    assert found[0].abs().sum() > 0
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_copy_of_a_layer_has_run_no_pass():
    passes, x = Passes(), torch.ones(2)
    passes.remember(x, Pass(active=True))
    assert passes.repeated(x) is not None
    assert copy.deepcopy(passes).repeated(x) is None
