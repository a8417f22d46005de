"""What the masks of models let tokens see, found by trying them."""

import pytest
import torch
from torch import fx

from lowbit.runtime.capture import Captured, Kind
from lowbit.runtime.masks import Sight, sight


def found(make, limit=1 << 20):
    """What is found of the mask that `make` gives for an attention mask [batch, length]."""
    graph = fx.Graph()
    given = graph.placeholder("attention_mask")
    given.meta["kind"] = Kind(torch.int64, ("b", "l"))
    mask = graph.call_function(make, (given,))
    graph.output((mask,))
    captured = Captured(fx.GraphModule({}, graph), None, {}, None)
    return sight(captured, mask, given, limit)


def keys(given):
    return given.bool()[:, None, None, :].expand(-1, 1, given.shape[1], -1)


def distance(given):
    at = torch.arange(given.shape[1])
    return at[:, None] - at


def window(given, reach=3):
    return keys(given) & (distance(given).abs() <= reach)


def added(given):
    return torch.where(keys(given), 0.0, torch.finfo(torch.float32).min)


def biased(given):
    return added(given) + distance(given).float()[None, None] / 8


def test_keys_that_exist():
    assert found(keys) == Sight()
    assert found(added) == Sight()


def test_causality_and_windows():
    assert found(lambda given: keys(given) & (distance(given) >= 0)) == Sight(causal=True)
    assert found(window) == Sight(window=3)


def test_a_bias_by_position_is_found_and_can_be_asked_for():
    sight = found(biased)
    assert (sight.causal, sight.window) == (False, 0)
    (bias,) = sight.bias(torch.ones(1, 5, dtype=torch.long))
    assert torch.equal(bias[0, 0], distance(torch.ones(1, 5)).float() / 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda given: keys(given)[:, :, :, 1:],
        lambda given: torch.ones_like(keys(given)),  # padding is seen
        lambda given: keys(given) & (distance(given) % 2 == 0),
        lambda given: keys(given) & (given[:, :1] == 1)[:, None, None],
        lambda given: added(given) + given.sum(1)[:, None, None, None] / 8,
        lambda given: keys(given) & (distance(given).abs() <= given.shape[1] // 2),
    ],
)
def test_anything_else_is_not_known(make):
    assert isinstance(found(make), str)


def test_a_mask_made_of_ids_is_not_known():
    graph = fx.Graph()
    ids, given = graph.placeholder("input_ids"), graph.placeholder("attention_mask")
    for node in (ids, given):
        node.meta["kind"] = Kind(torch.int64, ("b", "l"))
    mask = graph.call_function(lambda ids, given: keys(given) & keys(ids == 0), (ids, given))
    graph.output((mask,))
    captured = Captured(fx.GraphModule({}, graph), None, {}, None)
    assert sight(captured, mask, given, 1 << 20) == "a mask depends on what is in input_ids"


def test_windows_that_show_at_great_lengths_are_found():
    def make(given):
        return window(given, 100)

    graph = fx.Graph()
    given = graph.placeholder("attention_mask")
    given.meta["kind"] = Kind(torch.int64, ("b", "l"))
    mask = graph.call_function(make, (given,))
    number = graph.call_function(torch.add, (mask, 100))  # a number in the graph
    both = graph.call_function(lambda mask, number: mask, (mask, number))
    graph.output((both,))
    captured = Captured(fx.GraphModule({}, graph), None, {}, None)
    assert sight(captured, both, given, 1 << 20) == Sight(window=100)
