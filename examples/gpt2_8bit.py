# %% [markdown]
# # A GPT-2 in 8 bits
#
# The two classic ways to put weights into 8 bits, absmax and zero-point: first *simulated*, every
# parameter rounded but still stored as a float, which shows what the rounding costs and saves
# nothing; then *packed*, where the bytes really go. With what the model weighs, how well it
# predicts, how fast it writes and what it writes.

# %%
import copy
import os
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowbit
from lowbit import Absmax, ZeroPoint
from lowbit.evaluation.generation import generate_sample
from lowbit.evaluation.latency import Shape, time_beside
from lowbit.evaluation.perplexity import perplexity
from lowbit.formats import TENSOR

transformers.utils.logging.disable_progress_bar()
plt.rcParams |= {"figure.dpi": 96, "axes.spines.top": False, "axes.spines.right": False}


def find(variable, kind, name):
    """`name` in the folder that an environment variable gives, or in shared/ above this folder."""
    here = [parent / "shared" / kind for parent in (Path.cwd(), *Path.cwd().parents)]
    folders = [Path(os.environ[variable])] if variable in os.environ else here
    return next((folder / name for folder in folders if (folder / name).exists()), None)


# %% [markdown]
# The model is a small GPT-2 trained from scratch on WikiText-2, measured on the beginning of that
# corpus's test text. Where it is not at hand, the model of `lowbit demo` takes its place, trained
# here in a minute or two on Python's own documentation.

# %%
TOKENS = 80 * 256
folder = find("LOWBIT_MODELS", "models", "gpt2-wikitext2")
text = find("LOWBIT_DATA", "data", "wikitext-2/test.txt")
if folder and text:
    source, prompt = "a GPT-2 trained from scratch on WikiText-2", "The game was released in"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[0, :TOKENS]
else:
    from lowbit.demo import DemoSettings
    from lowbit.demo.cache import trained

    demo = trained(DemoSettings(), progress=False)
    source, prompt = "the GPT-2 of `lowbit demo`", "Return a new"
    model, tokenizer, ids = demo.model.eval(), demo.tokenizer, demo.held_out[:TOKENS]

torch.set_grad_enabled(False)
parameters = model.num_parameters()
print(f"{source}: {parameters:,} parameters; {len(ids):,} tokens of text")

# %% [markdown]
# ## One matrix, by hand
#
# *Absmax* spreads $-127 \dots 127$ over $\pm\max|w|$ and keeps zero where it is. *Zero-point*
# spreads 256 codes over $\min \dots \max$, and so has to remember which code is zero.

# %%
weight = model.transformer.h[0].attn.c_attn.weight


def absmax_by_hand(w):
    scale = w.abs().max() / 127
    codes = torch.round(w / scale)
    return codes, codes * scale


def zero_point_by_hand(w):
    scale = (w.max() - w.min()) / 255
    zero = torch.round(-w.min() / scale)
    codes = torch.clamp(torch.round(w / scale) + zero, 0, 255)
    return codes, (codes - zero) * scale


for scheme, by_hand in (
    (Absmax(8, TENSOR), absmax_by_hand),
    (ZeroPoint(8, TENSOR), zero_point_by_hand),
):
    codes, decoded = by_hand(weight)
    stored = scheme.quantize(weight)
    # lowbit stores scales as float16 and rounds with what it stored: a code may differ by one.
    differing = (stored.codes.float() - codes).abs()
    assert differing.max() <= 1
    ours = (lowbit.dequantize(stored) - weight).square().mean()
    hands = (decoded - weight).square().mean()
    assert abs(ours / hands - 1) <= 0.01
    print(
        f"{scheme.name:10} step {stored.scale.item():.6f}, MSE {ours:.3e},"
        f" {differing.count_nonzero() / codes.numel():.1%} of codes differ by one from float32's"
    )

# %% [markdown]
# ## All parameters, simulated
#
# Every tensor with one scale of its own: matrices, embeddings, norms and biases alike. The memory
# footprint does not move, as the values are floats still.

# %%
models = {"float32": model}
for scheme in ("absmax", "zero-point"):
    rounded = models[f"{scheme} (simulated)"] = copy.deepcopy(model)
    errors = lowbit.simulate(rounded, scheme)
    assert set(errors) == {name for name, _ in model.named_parameters()}
    assert rounded.get_memory_footprint() == model.get_memory_footprint()
    relative = {
        name: (errors[name] / parameter.square().mean().item()) ** 0.5
        for name, parameter in model.named_parameters()
        if parameter.any()
    }
    worst = sorted(relative, key=relative.get, reverse=True)[:3]
    print(f"{scheme}, relative error of the worst: ", end="")
    print(", ".join(f"{name.removeprefix('transformer.')} {relative[name]:.3f}" for name in worst))

# %% [markdown]
# ## Packed
#
# The same ideas with a scale per output row, in presets that store codes instead of floats. `-all`
# takes the embedding table, which is the output head too and stored once; without it the table
# stays float. The `int4` presets have a scale and a zero point for every 64 inputs of a row.

# %%
PRESETS = ("int8-all", "int8-zeropoint-all", "int4", "int4-all")
for preset in PRESETS:
    models[preset] = copy.deepcopy(model)
    lowbit.quantize(models[preset], preset, progress=False)

before = model.get_memory_footprint()
print(f"{'float32':20} {before:>12,} bytes")
for preset in PRESETS:
    after = models[preset].get_memory_footprint()
    bits = lowbit.footprint(models[preset]).bits_per_weight
    print(
        f"{preset:20} {after:>12,} bytes, {before / after:.2f} times fewer, {bits:.2f} bits/weight"
    )
assert before / models["int8-all"].get_memory_footprint() >= 3.8
assert before / models["int4-all"].get_memory_footprint() >= 6.5

# %% [markdown]
# ## What became of the weights
#
# All parameters in one histogram, before and after. At 8 bits with one scale per *tensor* the comb
# of allowed values shows; with one per *row* the combs of thousands of rows blur back into the
# curve. At 4 bits every group of 64 has zero among its 16 levels and the next one a whole step
# away: hence the spike and the gaps beside it. `int4` alone keeps the embedding table as it was.


# %%
def values(model):
    """All parameters as one vector, decoded where they are packed."""
    if hasattr(model, "hf_quantizer"):
        model = copy.deepcopy(model).dequantize()
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


original = values(model)
edge = 6 * original.std().item()
bins = torch.linspace(-edge, edge, 201)
before = torch.histogram(original, bins).hist
fig, axes = plt.subplots(3, 2, figsize=(8.4, 6.6), layout="constrained", sharex=True, sharey=True)
for ax, name in zip(axes.flat, [name for name in models if name != "float32"], strict=True):
    ax.stairs(before, bins, fill=True, color="#c6c9cf", label="float32")
    after = torch.histogram(values(models[name]), bins).hist
    ax.stairs(after, bins, baseline=None, color="#2a6f97", lw=0.8, label="quantized")
    ax.set(yscale="log", ylim=(100, 2e6))
    ax.set_title(name, fontsize=10)
for ax in axes[:, 0]:
    ax.set_ylabel("weights per bin")
for ax in axes[-1]:
    ax.set_xlabel("value")
axes[0, 0].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## How well it predicts
#
# Perplexity in blocks of the model's full context.

# %%
found = {name: perplexity(m, ids, progress=False) for name, m in models.items()}
change = {name: value / found["float32"] - 1 for name, value in found.items()}
print(f"{'':29} bytes   perplexity   change")
for name, m in models.items():
    print(f"{name:22} {m.get_memory_footprint():>12,} {found[name]:12.3f} {change[name]:+8.2%}")
assert all(abs(change[name]) <= 0.01 for name in models if not name.startswith("int4"))
assert abs(change["int8-all"]) <= 0.002 and change["int4-all"] <= 0.05

# %% [markdown]
# ## What it writes
#
# Sampled from the 30 likeliest tokens with the same seed. A token that changes changes all that
# follow: different text is not worse text.

# %%
torch.set_num_threads(1)  # for single tokens of so small a model a second thread only costs time
for name, m in models.items():
    sample = generate_sample(m, tokenizer, prompt, max_new_tokens=48, seed=0, top_k=30)
    print(textwrap.fill(f"[{name}] {' '.join(sample.split())}", 96), end="\n\n")

# %% [markdown]
# ## How fast
#
# Tokens per second of greedy generation from a prompt of 16 tokens: the median of rounds in which
# each model takes turns with the float one. The simulated models are float models, so what their
# speeds differ by is the noise of the machine.

# %%
for name, m in models.items():
    if m is not model:
        (timing,) = time_beside(m, model, [Shape(1, 16, 16)], rounds=3)
        rate = timing.tokens_per_second
        print(f"{name:22} {rate:6.1f} tokens/s, {timing.speedup:.2f} times float32")

# %% [markdown]
# The speeds are those of the kernels named here. A *reference* kernel is plain PyTorch that decodes
# the weights for every product: it shows that the answer is right, and is no measure of what
# 8 bits can gain.

# %%
layer = models["int8-all"].transformer.h[0].mlp.c_fc
print(f"threads: {torch.get_num_threads()}; kernel of int8-all: {layer.kernel()}")
