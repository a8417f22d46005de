"""The vector of a sequence from those of its tokens: the names and rules of sentence-transformers.

    mean                  1/n · Σ h_t
    mean_sqrt_len_tokens  1/√n · Σ h_t
    weightedmean          Σ t · h_t / Σ t,  t = 1 … n
    max                   the largest of each column
    cls, lasttoken        h_1, h_n

over the n tokens that exist. Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3;
weightedmean: Muennighoff 2022, "SGPT", section 3.1.
"""

from collections.abc import Callable

from torch import Tensor

# h float [batch, length, width], exists bool [batch, length] -> [batch, width].
Pooling = Callable[[Tensor, Tensor], Tensor]


def mean(h: Tensor, exists: Tensor) -> Tensor:
    return _sum(h, exists) / exists.sum(1, keepdim=True)


def mean_sqrt_len_tokens(h: Tensor, exists: Tensor) -> Tensor:
    return _sum(h, exists) / exists.sum(1, keepdim=True).sqrt()


def weightedmean(h: Tensor, exists: Tensor) -> Tensor:
    weight = exists.cumsum(1) * exists
    return (h * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def largest(h: Tensor, exists: Tensor) -> Tensor:
    return h.masked_fill(~exists[..., None], -float("inf")).amax(1)


def first(h: Tensor, exists: Tensor) -> Tensor:
    return h[range(len(h)), exists.int().argmax(1)]


def last(h: Tensor, exists: Tensor) -> Tensor:
    return h[range(len(h)), exists.cumsum(1).argmax(1)]


def _sum(h: Tensor, exists: Tensor) -> Tensor:
    return (h * exists[..., None]).sum(1)


POOLINGS: dict[str, Pooling] = {
    "mean": mean,
    "cls": first,
    "max": largest,
    "lasttoken": last,
    "weightedmean": weightedmean,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
}
