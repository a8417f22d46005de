"""Clusters of rows by frequency, with fewer bits the rarer they are."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import CHANNEL, group
from lowbit.schemes import Binary, Clustered, scheme_from_dict
from lowbit.schemes.clustered import cluster_sizes
from lowbit.training.subwords import train_tokenizer


@given(st.integers(1, 10**6), st.integers(1, 4), st.floats(1 / 64, 64))
@example(4, 4, 64.0)
@example(10**6, 4, 1 / 64)
def test_sizes_follow_the_powers_of_the_ratio(rows, clusters, ratio):
    if rows < clusters:
        with pytest.raises(UsageError, match=f"{rows} rows are too few for {clusters} clusters"):
            cluster_sizes(rows, clusters, ratio)
        return
    sizes = cluster_sizes(rows, clusters, ratio)
    assert len(sizes) == clusters and sum(sizes) == rows and min(sizes) >= 1
    powers = np.float64(ratio) ** np.arange(clusters)
    wanted = rows * powers / powers.sum()
    if wanted.min() >= 1:
        # Both ends of a cluster are rounded.
        assert (np.abs(sizes - wanted) <= 1 + 1e-6).all()
        ends = np.cumsum(wanted)
        assert (np.abs(np.cumsum(sizes) - ends) <= 0.5 + 1e-6).all()


@pytest.mark.parametrize(
    ("rows", "clusters", "ratio", "sizes"),
    [
        (6000, 4, 1.0, [1500, 1500, 1500, 1500]),
        (6000, 4, 2.0, [400, 800, 1600, 3200]),
        (6000, 4, 4.0, [71, 282, 1129, 4518]),
        (6000, 4, 0.5, [3200, 1600, 800, 400]),
        (15, 4, 0.5, [8, 4, 2, 1]),
        (10, 4, 1.0, [3, 2, 3, 2]),  # ends at 2.5, 5, 7.5, halves up
        (5, 4, 64.0, [1, 1, 1, 2]),  # none is empty
        (5, 4, 1 / 64, [2, 1, 1, 1]),
        (7, 1, 3.0, [7]),
    ],
)
def test_sizes_of_some_tables(rows, clusters, ratio, sizes):
    assert cluster_sizes(rows, clusters, ratio) == sizes


@pytest.mark.parametrize(
    ("ratio", "bits", "stored"),
    [(0.5, 3.27, 3.54), (1, 2.5, 2.71), (2, 1.73, 1.88), (4, 1.32, 1.43)],
)
def test_bits_are_those_that_the_documentation_gives(ratio, bits, stored):
    mean = np.dot(cluster_sizes(6000, 4, ratio), [4, 3, 2, 1]) / 6000
    assert (round(mean, 2), round(mean * (1 + 16 / 192), 2)) == (bits, stored)


@pytest.mark.parametrize("solver", ["greedy", "alternating"])
def test_each_cluster_is_what_binary_codes_of_its_bits_make_of_its_rows(solver):
    weight = torch.randn(37, 40, generator=torch.Generator().manual_seed(0))
    options = {"granularity": group(16), "offset": False, "solver": solver, "nested": True}
    q = Clustered(Binary(4, **options), 3, 2.0).quantize(weight)
    first = 0
    for part, (bits, rows) in zip(q.parts, [(4, 5), (3, 11), (2, 21)], strict=True):
        wanted = Binary(bits, **options).quantize(weight[first : first + rows])
        assert part.layout == wanted.layout and part.shape == (rows, 40)
        assert all(torch.equal(t, wanted.tensors()[name]) for name, t in part.tensors().items())
        first += rows
    assert first == 37


def test_bits_are_the_mean_of_the_clusters_and_their_scales_are_counted():
    """Equal clusters of 4, 3, 2 and 1 bits: 2.5, the paper's, and a float16 scale for each."""
    q = Clustered(Binary(4, CHANNEL, offset=False)).quantize(torch.randn(400, 192))
    size = sum(tensor.nbytes for tensor in q.tensors().values())
    assert size == 2.5 * 400 * 192 / 8 + 100 * (4 + 3 + 2 + 1) * 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 5}, "bits 5 is outside 1 … 4"),
        ({"bits": 3}, "4 clusters are outside 1 … 3: each has one bit less"),
        ({"clusters": 0}, "0 clusters are outside 1 … 4"),
        ({"ratio": 0.0}, "ratio 0.0 is outside 0.015625 … 64.0"),
        ({"ratio": float("nan")}, "ratio nan is outside"),
        ({"solver": "best"}, "solver 'best' is unknown"),
    ],
)
def test_options_that_cannot_be_are_a_usage_error(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        scheme_from_dict({"scheme": "clustered", **options})


def test_weights_that_cannot_be():
    scheme = Clustered(Binary(4, CHANNEL))
    with pytest.raises(UsageError, match="3 rows are too few for 4 clusters"):
        scheme.quantize(torch.randn(3, 8))
    with pytest.raises(UsageError, match="a float matrix"):
        scheme.quantize(torch.randn(8))
    spoiled = torch.randn(8, 8)
    spoiled[7, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        scheme.quantize(spoiled)


def test_the_words_of_a_corpus_have_the_bits_of_their_frequency():
    times = {"kana": 80, "bilo": 60, "mudu": 30, "gefe": 10}
    texts = [word for word, count in times.items() for _ in range(count)]
    tokenizer = train_tokenizer(texts, 256 + 2 + 4 * len(times), 16)
    ids = {word: tokenizer(word).input_ids[0] for word in times}
    counts = Counter(number for text in texts for number in tokenizer(text).input_ids[:-1])
    assert [counts[ids[word]] for word in times] == [80, 60, 30, 10]

    # The special tokens and two words make the first cluster of 274 rows.
    assert list(ids.values()) == [2, 3, 4, 5]
    scheme = Clustered(Binary(3, CHANNEL), 3, 7.75)
    table = torch.randn(len(tokenizer), 16, generator=torch.Generator().manual_seed(0))
    q = scheme.quantize(table)
    assert [part.shape[0] for part in q.parts] == [4, 31, 239]
    bits = [part.bits for part in q.parts for _ in range(part.shape[0])]
    assert [bits[number] for number in (0, 1, *ids.values())] == [3, 3, 3, 3, 2, 2]
    unseen = [number for number in range(2, len(tokenizer)) if not counts[number]]
    assert len(unseen) == len(tokenizer) - 6 and {bits[number] for number in unseen} == {2, 1}
