# %% [markdown]
# # Binary codes of a matrix
#
# Binary-code quantization (BCQ) writes each row of a matrix as a few scaled sign vectors,
#
# $$w \approx \sum_{i=1}^{b} \alpha_i b_i, \qquad b_i \in \{-1, +1\}^n,$$
#
# so that a product with it needs additions, and one multiplication for each scale. This notebook
# does it by hand, packs the signs eight to a byte, puts the pieces together again, and asks what
# the freedom to choose every $\alpha_i$ is worth beside a plain uniform grid.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors import safe_open

import lowbit
from lowbit import Absmax, Binary, ZeroPoint
from lowbit.formats import CHANNEL, group
from lowbit.formats.packing import unpack

torch.manual_seed(0)
plt.rcParams |= {"figure.dpi": 96, "axes.spines.top": False, "axes.spines.right": False}


def greedy(bits):
    return Binary(bits, CHANNEL, offset=False, solver="greedy")


def alternating(bits):
    return Binary(bits, CHANNEL, offset=False, solver="alternating")


# %% [markdown]
# ## Greedy, by hand
#
# The reference method: take the signs of what is left and its mean magnitude, subtract, repeat,
#
# $$b_i = \mathrm{sign}(r_i), \qquad \alpha_i = \overline{|r_i|}, \qquad
# r_{i+1} = r_i - \alpha_i b_i, \qquad r_1 = w.$$

# %%
BITS = 3
weight = torch.randn(1024, 768)

residual, alphas, planes = weight.double(), [], []
for _ in range(BITS):
    alphas.append(residual.abs().mean(1, keepdim=True))
    planes.append(torch.where(residual >= 0, 1.0, -1.0).double())
    residual = residual - alphas[-1] * planes[-1]
alphas, planes = torch.cat(alphas, 1), torch.stack(planes)

stored = greedy(BITS).quantize(weight)
ours = stored.alpha[0].t().double()
assert ((ours / alphas - 1).abs() <= 2**-10).all()
signs = unpack(stored.planes, 1, weight.shape[1]) * 2.0 - 1
print(f"α of row 0, by hand {[f'{a:.5f}' for a in alphas[0].tolist()]}")
print(f"            lowbit  {[f'{a:.5f}' for a in ours[0].tolist()]}")
print(f"signs that agree    {(signs == planes).double().mean():.3%}")
assert (signs == planes).double().mean() >= 0.998

# %% [markdown]
# lowbit keeps each $\alpha$ as float16 and takes the signs of what is left after *that*, so a
# weight that falls between the two differs in its later signs. On disk a sign is one bit, eight to
# a byte, the first in the lowest place.

# %%
first = [int(s > 0) for s in signs[0, 0, :8].tolist()]
by_hand = sum(bit << i for i, bit in enumerate(first))
print(f"signs {first} -> byte {by_hand:#04x}, stored {stored.planes[0, 0, 0].item():#04x}")
assert stored.planes[0, 0, 0] == by_hand
assert stored.planes.shape == (BITS, 1024, 768 // 8)

codes, scales = stored.planes.nbytes, stored.alpha.nbytes
print(f"{weight.nbytes:,} bytes -> {codes:,} of signs + {scales:,} of scales")
print(f"{8 * (codes + scales) / weight.numel():.4f} bits per weight: {BITS} + 16 · {BITS} / 768")
assert 8 * (codes + scales) / weight.numel() == BITS + 16 * BITS / 768

# %% [markdown]
# ## Residual + reconstruction = original
#
# What was taken away and what is left must add up to the matrix. In float64 they do to the last
# bit; in float32 to one rounding of each of the two operations.

# %%
reconstruction = lowbit.dequantize(stored)
exact = weight.double() - reconstruction.double()
assert torch.equal(exact + reconstruction.double(), weight.double())

left = weight - reconstruction
off = (left + reconstruction - weight).abs()
unit = torch.finfo(torch.float32).eps / 2
assert (off <= unit * (left.abs() + weight.abs()) * (1 + unit)).all()
print(f"float64: exact; float32: off by at most {off.max():.1e}, half an ulp being {unit:.1e}")

# %% [markdown]
# ## What the solver is worth
#
# Greedy never looks back. The alternating solver does: nearest codes for the scales, best scales
# for the codes, in turn. The mean squared error on rows of 768 numbers from N(0, 1), where the
# literature's values are known:

# %%
KNOWN = {"greedy": (0.1304, 0.0584, 0.0329), "alternating": (0.1175, 0.0369, 0.0114)}
SCHEMES = {
    "greedy": greedy,
    "alternating": alternating,
    "absmax": lambda bits: Absmax(bits, CHANNEL),
    "zero-point": lambda bits: ZeroPoint(bits, CHANNEL),
}
WIDTHS = (2, 3, 4)


def relative_mse(decoded, weight):
    return ((decoded - weight).square().mean() / weight.square().mean()).item()


def best_uniform(bits, weight, steps=60):
    """The best of many uniform grids around zero, per row: clipping is allowed, an offset not."""
    half = 2 ** (bits - 1)
    largest = weight.abs().amax(1, keepdim=True) / (half - 0.5)
    best, least = weight, torch.full_like(largest, torch.inf)
    for share in torch.logspace(-1.5, 0, steps):
        step = share * largest
        decoded = ((weight / step).floor().clamp(-half, half - 1) + 0.5) * step
        error = (decoded - weight).square().mean(1, keepdim=True)
        best = torch.where(error < least, decoded, best)
        least = torch.minimum(error, least)
    return best


def errors_of(weight):
    """By scheme, the mean squared error over the mean square at each width."""
    errors = {
        name: [relative_mse(lowbit.dequantize(make(b).quantize(weight)), weight) for b in WIDTHS]
        for name, make in SCHEMES.items()
    }
    uniform = [relative_mse(best_uniform(b, weight), weight) for b in WIDTHS]
    return errors | {"best uniform": uniform}


def show(errors):
    print("bits               " + "".join(f"{bits:<9}" for bits in WIDTHS))
    for name, values in errors.items():
        print(f"{name:18}" + "".join(f" {value:.4f}  " for value in values))


normal = errors_of(weight)
show(normal | {f"{name}, known": values for name, values in KNOWN.items()})
for found, known in zip(normal["greedy"], KNOWN["greedy"], strict=True):
    assert abs(found / known - 1) <= 0.02
for found, known in zip(normal["alternating"], KNOWN["alternating"], strict=True):
    assert 0.95 <= found / known <= 1.02

# %% [markdown]
# Alternating takes a tenth off greedy's error at 2 planes and two thirds at 4. Absmax and
# zero-point look worse than they are: their grids reach to the last outlier of the row. A uniform
# grid that is free to clip comes within two percent, so that on such weights non-uniform levels by
# themselves buy little. What BCQ has to offer is elsewhere: its products need next to no
# multiplications, and a model of fewer planes can be part of one of more.
#
# ## A real matrix
#
# The output projection of the last attention layer of GPT-2 (124M), with weights up to 49 standard
# deviations out. GPT-2 stores it `[in, out]`; the rows of BCQ are outputs. With outliers the
# freedom counts: a seventh to a quarter less error than the best uniform grid. Groups of inputs
# with scales of their own help more, and cost 16 bits for each plane of each group. (Where the
# matrix is not at hand, one from a heavy-tailed distribution stands in.)


# %%
def find(name):
    """`name` in $LOWBIT_DATA, or in shared/data above this folder."""
    here = [parent / "shared/data" for parent in (Path.cwd(), *Path.cwd().parents)]
    folders = [Path(os.environ["LOWBIT_DATA"])] if "LOWBIT_DATA" in os.environ else here
    return next((folder / name for folder in folders if (folder / name).exists()), None)


file = find("gpt2-attention/weights.safetensors")
if file:
    title = "GPT-2, h.11.attn.proj"
    with safe_open(file, "pt") as tensors:
        real = tensors.get_tensor("h.11.attn.proj.weight").float().t().contiguous()
else:
    title = "Student's t, 5 degrees of freedom"
    real = torch.distributions.StudentT(5.0).sample((768, 768))
print(f"{title}: std {real.std():.3f}, largest {real.abs().max():.3f}")
heavy = errors_of(real)
show(heavy)


def bits_per_weight(stored):
    return 8 * sum(tensor.nbytes for tensor in stored.tensors().values()) / real.numel()


print("\nalternating, 3 planes    bits per weight   relative MSE")
for granularity in (CHANNEL, group(128), group(64)):
    for offset in (False, True):
        stored = Binary(3, granularity, offset=offset).quantize(real)
        error = relative_mse(lowbit.dequantize(stored), real)
        name = f"{granularity}{', offset' if offset else ''}"
        print(f"{name:24} {bits_per_weight(stored):15.3f} {error:14.4f}")

# %%
COLORS = {
    "absmax": "#c6c9cf",
    "zero-point": "#8d99ae",
    "greedy": "#f4a259",
    "best uniform": "black",
    "alternating": "#2a6f97",
}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained", sharey=True)
for ax, errors, name in zip(axes, (normal, heavy), ("N(0, 1)", title), strict=True):
    for scheme, color in COLORS.items():
        style = {"ls": ":", "marker": "."} if scheme == "best uniform" else {"marker": "o", "ms": 4}
        ax.plot(WIDTHS, errors[scheme], color=color, label=scheme, **style)
    ax.set(yscale="log", xticks=WIDTHS, xlabel="bits, one scale per row", title=name)
    ax.grid(axis="y", alpha=0.3)
axes[0].set_ylabel("mean squared error / mean square")
axes[0].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## The levels of one row
#
# The levels that three bits use for the 768 weights of the row with the largest outlier. Zero-point
# stretches to reach it and spends its levels on emptiness. Greedy takes its first step from the
# mean magnitude of the row, which is small, and never gets to the outliers. Alternating puts levels
# where the weights are.

# %%
row = int(real.abs().amax(1).argmax())
fig, axes = plt.subplots(3, 1, figsize=(8.4, 4.6), layout="constrained", sharex=True)
for ax, name in zip(axes, ("zero-point", "greedy", "alternating"), strict=True):
    decoded = lowbit.dequantize(SCHEMES[name](3).quantize(real[row : row + 1]))
    error = relative_mse(decoded, real[row : row + 1])
    ax.hist(real[row], bins=120, color="#c6c9cf")
    ax.vlines(decoded.unique(), 0.5, 300, color=COLORS[name], lw=1.4)
    ax.set(yscale="log", ylabel="weights", ylim=(0.5, 300))
    ax.set_title(f"{name}, relative MSE {error:.3f}", fontsize=10)
axes[-1].set_xlabel(f"weight in row {row}")
plt.show()
