"""Native code that gets no memory raises a memory error, on however many threads it runs."""

import os
import subprocess
import sys

import pytest

from lowbit.kernels import native

# Address space grows by half a megabyte from call to call, until one succeeds: each large
# allocation of the call is the first to fail in one of them. Each case runs in a process of its
# own, because threads keep their scratch. Packed weights are zeros, because packing uses scratch.
PROGRAM = """
import os
import resource
import sys

import numpy as np
import torch
from lowbit.formats import AffineLayout, ExpertsLayout, group
from lowbit.kernels import native, ops
from lowbit.kernels.experts.native import ExpertsProduct
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.packed_layout import PackedLayout
from tests.stored import affine

FORM = AffineLayout(4, group(128), zero_point=False)


def zeros(form):
    return torch.zeros(form.size, dtype=torch.uint8)


def best(operator):
    return next(t.name for t in native.targets(operator) if not native.lacks(t.feature))


def product(activations, target, rows, inputs):
    # Rows of bfloat16 are widened in memory of each thread's own.
    form = PackedLayout(FORM, 256, inputs)
    call, packed = LinearProduct(form, activations, target), zeros(form)
    x = torch.ones(rows, inputs, dtype=torch.bfloat16)
    return lambda: call(x, packed, None)


def packing():
    inputs = 1 << 16
    codes, scales = np.zeros((128, inputs), np.uint8), np.ones((128, inputs // 128), np.float32)
    q = affine(codes, scales, None, 4, group(128)).q
    form = PackedLayout(q.layout, *q.shape)
    return lambda: form.pack(q)


def unpacking():
    form = PackedLayout(FORM, 128, 1 << 16)
    packed = zeros(form)
    return lambda: form.unpack(packed)


def experts():
    # So many results that each thread sums some outputs of all of them at a time.
    form = ExpertsPackedLayout(ExpertsLayout(2, FORM), 2 * 2048, 256)
    call, packed = ExpertsProduct(form, "dynamic", best("experts")), zeros(form)
    x, weights = torch.ones(1024, 256), torch.ones(512, 2)
    ids = torch.arange(2).expand(512, 2)
    return lambda: call(x, ids, packed, None, weights=weights)


def attention():
    # The sums of a few queries in bfloat16 are float32, in memory of the call's own.
    query, key, value = (torch.ones(64, 16, 7, 128, dtype=torch.bfloat16) for _ in range(3))
    target = best("attention_float32")
    return lambda: ops.attention(query, key, value, None, 0.1, False, target)


CASES = {
    "product": lambda: product("dynamic", "scalar", 1, 1 << 19),
    "product-best": lambda: product("dynamic", best("linear"), 64, 1 << 14),
    "float-product-best": lambda: product("float", best("linear"), 64, 1 << 14),
    "packing": packing,
    "unpacking": unpacking,
    "experts": experts,
    "attention": attention,
}


def is_memory_error(error):
    # Torch's own allocator raises a RuntimeError.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def failures(case):
    torch.set_num_threads(8)  # more than quantize: the others wait
    torch.ones(1 << 19).mul_(2)  # threads have started
    call = CASES[case]()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    failed, wrong = 0, None
    for more in range(64):
        resource.setrlimit(resource.RLIMIT_AS, (used + (more << 19), most))
        try:
            call()
            break
        except (MemoryError, RuntimeError) as error:
            failed += 1
            wrong = wrong or (None if is_memory_error(error) else error)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if wrong:
        raise wrong
    return failed


for case in CASES:
    # A child has none of the threads of those before it.
    if os.fork() == 0:
        print(case, failures(case), flush=True)
        os._exit(0)
    _, status = os.wait()
    if status:
        sys.exit(f"{case} ended with {status}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does")
def test_a_call_whose_memory_runs_out_anywhere_raises_a_memory_error_on_all_threads():
    # What is freed goes back, and no thread has memory in reserve: the limit alone decides.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=env, timeout=300, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    failed = dict(line.split() for line in ran.stdout.splitlines())
    assert len(failed) == 7
    for case, calls in failed.items():
        assert 0 < int(calls) < 64, case
