"""What is said of a table in clusters, and how often each cluster is read."""

from types import SimpleNamespace

import torch

from lowbit.conversion.recipe import Recipe, Rule
from lowbit.formats import CHANNEL
from lowbit.qat.projection import prepare_codes
from lowbit.schemes import Binary, Clustered
from lowbit.training.frequencies import bits_read
from tests.models import make


def said(scheme, examples, kind="marian"):
    model = make(kind)  # of 200 rows
    prepare_codes(model, Recipe((Rule("@embedding", scheme),)))
    return bits_read(SimpleNamespace(model=model, examples=examples))


def test_shares_are_those_of_tokens_by_hand():
    scheme = Clustered(Binary(4, CHANNEL), 2, 3.0)  # 50 rows of 4 bits, 150 of 3
    # 6 tokens of the first 50 rows, 4 of the others: sorted, all would be among the first.
    examples = [
        {"input_ids": [0, 0, 49, 50], "labels": [199, 199, 199]},
        {"input_ids": [7, 7, 7], "labels": [-100]},
    ]
    assert said(scheme, examples) == (
        "tokens of the training data whose row has 4, 3 bits: 60.00, 40.00 %;"
        " were the rows sorted by frequency: 100.00, 0.00 %",
    )


def test_labels_that_are_no_tokens_and_other_tables_are_left_alone():
    scheme = Clustered(Binary(2, CHANNEL), 2)
    (note,) = said(scheme, [{"input_ids": [1, 150], "start_positions": 3, "labels": 1}], "gpt2")
    assert "2, 1 bits: 50.00, 50.00 %" in note
    # Blocks of a text are tensors.
    ids = torch.tensor([1, 2, 3, 150])
    (note,) = said(scheme, [{"input_ids": ids, "labels": ids}], "gpt2")
    assert "2, 1 bits: 75.00, 25.00 %" in note
    assert said(Binary(2, CHANNEL), [{"input_ids": [1, 150]}]) == ()
