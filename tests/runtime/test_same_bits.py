"""A program with integer activations gives the same bits everywhere: on every instruction set that
runs here, with any number of threads, whatever else is in the batch."""

import copy
import hashlib

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
)

import lowbit
from lowbit.kernels import native
from lowbit.kernels.selection import VARIABLE
from tests.targets import runnable

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason())

CONFIG = {
    "vocab_size": 60,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
}
SPECIAL = {f"{name}_token_id": n for n, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**CONFIG), add_pooling_layer=False),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**CONFIG, **SPECIAL, local_attention=32, global_attn_every_n_layers=2)
    ),
    "mpnet": lambda: MPNetModel(MPNetConfig(**CONFIG), add_pooling_layer=False),
}
LENGTHS = (5, 140, 1, 17, 300, 33)
ARRANGEMENTS = (
    ((0, 1, 2, 3, 4, 5),),
    ((5, 4, 3, 2, 1, 0),),
    ((0,), (1,), (2,), (3,), (4,), (5,)),
    ((0, 3), (1, 4), (2, 5)),
    ((4, 2), (0, 1, 3, 5)),
    ((3, 3, 3), (0, 1), (2,), (4, 5)),
    ((1, 0), (3, 2), (5, 4)),
    ((2, 4, 0), (5, 1, 3)),
    ((0, 1, 2), (3, 4, 5)),
    ((4,), (0, 1, 2, 3, 5)),
)
TARGETS = runnable(native.targets("linear"))


def digest(model, arrangement, sequences):
    found = {}
    for group in arrangement:
        length = max(len(sequences[i]) for i in group) + 3
        ids = torch.ones(len(group), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(group):
            ids[row, : len(sequences[i])] = sequences[i]
            mask[row, : len(sequences[i])] = 1
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, i in enumerate(group):
            found[i] = states[row, : len(sequences[i])].contiguous().numpy().tobytes()
    return hashlib.sha256(b"".join(found[i] for i in sorted(found))).hexdigest()


@pytest.mark.parametrize(
    "name",
    ["bert", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("mpnet", "modernbert"))],
)
def test_one_hash_for_targets_threads_and_batches(name, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    lowbit.quantize(model, "int8-all-dynamic", progress=False)
    sequences = [torch.randint(5, 60, (n,)) for n in LENGTHS]
    threads = torch.get_num_threads()
    found = {}
    try:
        for target in TARGETS:
            monkeypatch.setenv(VARIABLE, target)
            compiled = lowbit.compile(copy.deepcopy(model))
            for count in (1, 2):
                torch.set_num_threads(count)
                # Scalar code is slow.
                for arrangement in ARRANGEMENTS[: 1 if target == native.BASE else None]:
                    key = digest(compiled, arrangement, sequences)
                    found.setdefault(key, []).append((target, count, arrangement))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1, {key[:8]: cases[0] for key, cases in found.items()}
