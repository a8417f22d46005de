# %% [markdown]
# # DistilBERT in 8 bits
#
# From one weight matrix, quantized with a single scale, to the whole model with int8 activations
# in one call; and the same model under PyTorch's own dynamic quantization beside it.

# %%
import copy
import io
import os
import tempfile
import time
import warnings

import matplotlib.pyplot as plt
import torch
import transformers
from transformers import DistilBertConfig, DistilBertForSequenceClassification

import lowbit
from lowbit import Absmax
from lowbit.formats import CHANNEL, TENSOR

MIB = 2**20
transformers.utils.logging.disable_progress_bar()
torch.set_grad_enabled(False)
torch.manual_seed(0)
plt.rcParams |= {"figure.dpi": 96, "axes.spines.top": False, "axes.spines.right": False}


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


# %% [markdown]
# Offline (`HF_HUB_OFFLINE=1`) the weights are random, in the architecture's default configuration;
# sizes and times are those of the real model, errors are not. Where a hub can be reached, the
# sentiment classifier fine-tuned on SST-2 is used.

# %%
if os.environ.get("HF_HUB_OFFLINE") == "1":
    model = DistilBertForSequenceClassification(DistilBertConfig()).eval()
    print("random weights")
else:
    name = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
    model = DistilBertForSequenceClassification.from_pretrained(name)
    print(name)
ids = torch.randint(1000, model.config.vocab_size, (4, 128))
print(f"{model.num_parameters():,} parameters, input of {ids.shape[0]} × {ids.shape[1]} tokens")

# %% [markdown]
# ## One matrix, one scale, no zero point
#
# int8 holds 256 values, so a first idea is a step that spreads them over the whole range,
#
# $$s = \frac{\max(w) - \min(w)}{255}, \qquad
# q = \mathrm{clamp}(\mathrm{round}(w / s), -128, 127),$$
#
# with the zero point fixed at 0. In lowbit this is `Absmax(8, TENSOR, range="minmax")`.

# %%
weight = model.distilbert.transformer.layer[0].ffn.lin1.weight
stored = Absmax(8, TENSOR, range="minmax").quantize(weight)

scale = stored.scale.item()
by_hand = torch.clamp(torch.round(weight / scale), -128, 127).to(torch.int8)
assert torch.equal(stored.codes, by_hand)
assert abs(scale / ((weight.max() - weight.min()).item() / 255) - 1) <= 2**-11  # float16 scale

print(f"weights {list(weight.shape)}, {weight.min():.4f} … {weight.max():.4f}, step {scale:.6f}")
print(f"bytes   {weight.nbytes:,} -> {stored.codes.nbytes:,} of codes + {stored.scale.nbytes}")
assert weight.nbytes == 4 * stored.codes.nbytes

# %% [markdown]
# The codes take exactly a quarter of the float32 bytes. But the range of the codes is centred on
# zero and that of the weights is not: everything beyond $127 s$ on the larger side is clipped, by
# much more than half a step if the range is lopsided. Absmax takes its step from the larger side,
# $s = \max|w| / 127$, and never clips. Shifting the weights makes the difference plain.

# %%
schemes = {
    "(max − min) / 255": Absmax(8, TENSOR, range="minmax"),
    "max|w| / 127": Absmax(8, TENSOR),
    "max|w| / 127 per row": Absmax(8, CHANNEL),
}


def report(weight):
    for name, scheme in schemes.items():
        stored = scheme.quantize(weight)
        error = (lowbit.dequantize(stored) - weight).abs()
        step = stored.scale.float()
        worst = (error / step).max()
        print(f"  {name:22} MSE {error.square().mean():.3e}, worst error {worst:6.2f} steps")


print("the matrix as it is")
report(weight)
print("shifted by half its range")
lopsided = weight + weight.abs().max() / 2
report(lopsided)

# %%
COLORS = dict(zip(schemes, ("#bc4b51", "#2a6f97", "#f4a259"), strict=True))
BINS = 40
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3), layout="constrained", sharey=True)
for ax, values, title in zip(axes, (weight, lopsided), ("as it is", "shifted"), strict=True):
    edges = torch.linspace(values.min().item(), values.max().item(), BINS + 1)
    bin_of = torch.bucketize(values.flatten(), edges[1:-1])
    for name, scheme in schemes.items():
        error = (lowbit.dequantize(scheme.quantize(values)) - values).abs().flatten()
        worst = torch.full((BINS,), torch.nan)
        worst = worst.scatter_reduce(0, bin_of, error, "amax", include_self=False)
        ax.stairs(worst, edges, baseline=None, color=COLORS[name], label=name, lw=1.5)
    ax.set(xlabel="weight", title=title, yscale="log")
axes[0].set_ylabel("largest error")
axes[0].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## The whole model in one call
#
# `int8-dynamic` stores the linear layers as int8 with a scale per output row and quantizes their
# inputs at run time with a scale per token, so that the products are sums of integers.

# %%
quantized = copy.deepcopy(model)
result = lowbit.quantize(quantized, "int8-dynamic", progress=False)
plan = result.plan
print(f"{len(plan.quantized)} modules, {plan.share:.1%} of the parameters, are quantized")
for decision in plan.kept:
    print(f"kept: {decision.name:42} {decision.parameters:>10,}  {decision.reason}")
print(f"kept: {'biases and norms':42} {plan.vector_parameters:>10,}")
assert len(plan.quantized) == 6 * 6

# %% [markdown]
# Called as before, it answers nearly as before. On disk the 43 million linear weights take a
# quarter, and the float embedding table is now the larger half.

# %%
with tempfile.TemporaryDirectory() as folder:
    quantized.save_pretrained(folder)
    after = lowbit.footprint(quantized, folder)
before = result.before.stored_bytes
print(f"float32 {before / MIB:7.2f} MiB")
print(
    f"int8    {after.disk_bytes / MIB:7.2f} MiB on disk, {after.resident_bytes / MIB:.2f} in memory"
)
print(f"        {after.bits_per_weight:7.2f} bits per weight, everything counted")

# %% [markdown]
# ## Beside PyTorch
#
# `torch.ao.quantization.quantize_dynamic` is deprecated, but still what most tutorials call. It
# does the same to every `nn.Linear` with one scale per *tensor*, for weights and for activations
# alike; it also takes the two layers of the classifier, which the preset keeps.

# %%
sizes = {"float32": before, "lowbit": after.disk_bytes}
models = {"float32": model, "lowbit": quantized}
if hasattr(torch.ao.quantization, "quantize_dynamic"):
    with warnings.catch_warnings(action="ignore"):
        rival = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    file = io.BytesIO()
    torch.save(rival.state_dict(), file)
    models["torch"], sizes["torch"] = rival, file.tell()
else:
    print("this PyTorch has no quantize_dynamic any more")


def milliseconds(models, rounds=9):
    """The median forward pass of each, after one to warm up; they take turns."""
    times = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model(ids)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: sorted(each[1:])[rounds // 2] for name, each in times.items()}


expected = model(ids, output_hidden_states=True)
hidden_error, logits_error, latency = {}, {}, milliseconds(models)
print("            MiB   error of hidden states   of logits     ms")
for name, m in models.items():
    output = m(ids, output_hidden_states=True)
    hidden_error[name] = relative_error(output.hidden_states[-1], expected.hidden_states[-1])
    logits_error[name] = relative_error(output.logits, expected.logits)
    print(
        f"{name:8} {sizes[name] / MIB:6.1f} {hidden_error[name]:24.4f} {logits_error[name]:11.4f}"
        f" {latency[name]:6.0f}"
    )
assert max(hidden_error["lowbit"], logits_error["lowbit"]) <= 0.05
assert hidden_error["lowbit"] <= hidden_error.get("torch", 1)

# %% [markdown]
# A scale per row and per token is what halves the error. The times are those of this machine, with
# whatever kernel serves the layers there; a kernel called *reference* is plain PyTorch, the
# integers held in floats: it is there to be right, not fast.

# %%
layer = quantized.distilbert.transformer.layer[0].ffn.lin1
print(f"{torch.get_num_threads()} threads; lowbit's kernels: {layer.kernel()}")

fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.3), layout="constrained")
panels = {
    ("MiB on disk", "%.0f"): {name: size / MIB for name, size in sizes.items()},
    ("relative error of hidden states", "%.3f"): hidden_error,
    ("ms, 4 × 128 tokens", "%.0f"): latency,
}
for ax, ((title, form), values) in zip(axes, panels.items(), strict=True):
    colors = [{"float32": "#8d99ae", "lowbit": "#2a6f97", "torch": "#f4a259"}[n] for n in values]
    bars = ax.barh(list(values), list(values.values()), color=colors, height=0.6)
    ax.bar_label(bars, fmt=form, padding=3)
    ax.margins(x=0.25)
    ax.invert_yaxis()
    ax.set_title(title, fontsize=10)
plt.show()
