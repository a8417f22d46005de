"""Weights that a scheme must cope with, as hypothesis strategies."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Around float32's smallest normal, float16's limits, and float32's largest numbers.
MAGNITUDES = (1e-44, 1e-37, 1e-9, 1e-5, 0.02, 1.0, 3e4, 1e7, 1e37)


@st.composite
def weights(draw, dtypes=DTYPES, magnitudes=MAGNITUDES, min_rows=0, max_columns=70):
    """A weight [out, in]: normal numbers or any finite ones, some rows or groups of them zero."""
    shape = draw(st.integers(min_rows, 4)), draw(st.integers(1, max_columns))
    dtype = draw(st.sampled_from(dtypes))
    if draw(st.booleans()):
        normal = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(shape)
        values = (normal * draw(st.sampled_from(magnitudes))).astype(np.float32)
    else:
        # Multiples of 1/8 make ties frequent.
        eighths = st.integers(-40, 40).map(lambda k: k / 8)
        size = float(np.float32(max(magnitudes)))
        values = draw(
            hnp.arrays(np.float32, shape, elements=eighths | st.floats(-size, size, width=32))
        )
    if draw(st.booleans()):
        values[:, draw(st.integers(0, shape[1])) :] = 0
    limit = torch.finfo(dtype).max
    weight = torch.from_numpy(values).clamp(-limit, limit).to(dtype)
    # A transposed copy holds the same numbers in another order in memory.
    return weight.t().contiguous().t() if draw(st.booleans()) else weight


def rows_of(weight):
    """What may share a scale within the rows of a weight: "channel", or a number of inputs."""
    channel = st.just("channel")
    columns = weight.shape[1]
    return channel if columns < 2 else channel | st.integers(2, columns)


def units_of(weight):
    """What may share a scale in a weight: "tensor" too."""
    return st.just("tensor") | rows_of(weight)
