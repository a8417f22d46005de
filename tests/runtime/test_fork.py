"""Processes that are forked from one that holds a model: two workers, one copy of the weights."""

import re
import subprocess
import sys

import pytest

from lowbit.kernels import native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=native.reason()),
]
# OpenMP's threads do not live on in a child: it calls from a thread of its own, or the parent has
# used one thread alone.
WORKERS = """
import hashlib, os, sys, threading
import torch
from transformers import BertConfig, BertModel
import lowbit

way = sys.argv[1]
threads = torch.get_num_threads()
if way == "one thread":
    torch.set_num_threads(1)
torch.manual_seed(0)
sizes = dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160)
model = BertModel(BertConfig(vocab_size=60, **sizes)).eval()
lowbit.quantize(model, "int8-dynamic", progress=False)
lowbit.compile(model)
ids = torch.randint(0, 60, (8, 64))

def say():
    with torch.no_grad():
        states = model(input_ids=ids).last_hidden_state
    print(hashlib.sha256(states.numpy().tobytes()).hexdigest(), flush=True)

say()
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        if way == "one thread":
            torch.set_num_threads(max(threads, 2))
            say()
        else:
            thread = threading.Thread(target=say)
            thread.start()
            thread.join()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
say()
"""


@pytest.mark.parametrize(
    "way", ["one thread", pytest.param("a new thread", marks=pytest.mark.nightly)]
)
def test_two_workers_compute_what_their_parent_computes(way):
    run = [sys.executable, "-c", WORKERS, way]
    ran = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    # Two workers may print between a hash and the end of its line.
    hashes = re.findall("[0-9a-f]{64}", ran.stdout)
    assert len(hashes) == 4 and len(set(hashes)) == 1
