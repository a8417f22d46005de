"""Greedy search: transformers' `_sample` without sampling, if only a token or a length ends a
row."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria


def serves(criteria: StoppingCriteriaList) -> bool:
    return all(type(criterion) in (EosTokenCriteria, MaxLengthCriteria) for criterion in criteria)


def greedy(
    ids: Integer[Tensor, "batch tokens"],
    logits: Float[Tensor, "batch 1 vocabulary"],
    step: Callable[[Integer[Tensor, "batch 1"]], Float[Tensor, "batch 1 vocabulary"]],
    processor: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    pad: int,
) -> Integer[Tensor, "batch longer"]:
    """`ids` with new tokens, starting from the `logits` after them; `pad` fills rows that have
    ended."""
    most = criteria.max_length
    ends = {end for criterion in criteria for end in _ends(criterion)}
    open_rows = set(range(len(ids)))
    new: list[Tensor] = []  # joined to `ids` only if a processor or criterion reads them
    while True:
        scores = logits[:, -1].to(torch.float32, copy=bool(processor))
        if processor:
            scores = processor(ids, scores)
        # torch.argmax takes twenty times as long.
        tokens = torch.from_numpy(scores.numpy(force=True).argmax(-1, keepdims=True))
        found = tokens.flatten().tolist()
        if len(open_rows) < len(found):
            found = [token if row in open_rows else pad for row, token in enumerate(found)]
            tokens = torch.tensor(found)[:, None]
        new.append(tokens)
        open_rows -= {row for row, token in enumerate(found) if token in ends}
        if not open_rows or (most is not None and ids.shape[1] + len(new) >= most):
            return torch.cat([ids, *new], 1)
        if processor:
            ids, new = torch.cat([ids, *new], 1), []
        logits = step(tokens)


def _ends(criterion: object) -> list[int]:
    ends: list[int] = (
        criterion.eos_token_id.tolist() if isinstance(criterion, EosTokenCriteria) else []
    )
    return ends
