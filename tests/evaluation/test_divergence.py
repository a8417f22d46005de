import numpy as np
import pytest
import torch

import lowbit
from lowbit import UsageError
from lowbit.evaluation import windows
from lowbit.evaluation.divergence import divergence
from lowbit.evaluation.perplexity import perplexity
from tests.models import VOCABULARY, make

IDS = torch.randint(VOCABULARY, (150,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def models():
    """A model far enough from uniform, and what three bits make of it."""
    pair = []
    for _ in range(2):
        model = make("llama-untied")
        model.lm_head.weight.data *= 5
        pair.append(model)
    lowbit.quantize(pair[0], "int2-all", progress=False)
    return pair


def probabilities(model, ids):
    """float64 [tokens, vocabulary], of a window by itself."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0].double().numpy()
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def by_hand(model, reference, context, stride):
    """Every window apart; its predicted positions are those that no earlier window held."""
    terms, same, done = [], [], 1
    for start in range(0, len(IDS), stride):
        end = min(start + context, len(IDS))
        p, q = (probabilities(m, IDS[start:end]) for m in (reference, model))
        for position in range(max(done, start + 1), end):
            row = position - start - 1
            terms.append((p[row] * np.log(p[row] / q[row])).sum())
            same.append(p[row].argmax() == q[row].argmax())
        done = end
        if end == len(IDS):
            break
    return np.mean(terms), np.mean(same)


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (64, 20), (33, 33), (2, 1)])
def test_it_is_the_mean_over_predicted_tokens(models, context, stride):
    found = divergence(*models, IDS, context, stride, progress=False)
    kl, top1 = by_hand(*models, context, stride)
    assert kl > 1e-3 and top1 < 1
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert found.top1 == pytest.approx(top1, abs=1e-12)
    alone = perplexity(models[0], IDS, context, stride, progress=False)
    assert found.perplexity == pytest.approx(alone, rel=1e-5)


def test_how_many_windows_run_together_changes_nothing(models, monkeypatch):
    before = divergence(*models, IDS, 16, progress=False)
    monkeypatch.setattr(windows, "LOGITS_AT_ONCE", 1)
    after = divergence(*models, IDS, 16, progress=False)
    assert after.kl == pytest.approx(before.kl, rel=1e-6) and after.top1 == before.top1


def test_a_model_does_not_diverge_from_itself(models):
    found = divergence(models[1], models[1], IDS, progress=False)
    assert (found.kl, found.top1) == (0, 1)


def test_different_vocabularies_are_refused(models):
    other = make("llama-untied")
    other.resize_token_embeddings(VOCABULARY + 8)
    with pytest.raises(UsageError, match="vocabularies of 200 and 208 tokens"):
        divergence(models[0], other, IDS)


def test_the_interval_of_perplexity_is_that_of_paired_losses(models):
    model, reference = models
    found = divergence(model, reference, IDS, context=len(IDS), progress=False)
    rows, targets = np.arange(len(IDS) - 1), IDS[1:].numpy()
    losses = [-np.log(probabilities(m, IDS)[rows, targets]) for m in models]
    error = (losses[0] - losses[1]).std(ddof=1) / np.sqrt(len(targets))
    wanted = np.exp(losses[0].mean() + np.array([-1.96, 1.96]) * error)
    assert np.allclose([found.low, found.high], wanted, rtol=1e-4)
    assert found.low < found.perplexity < found.high
