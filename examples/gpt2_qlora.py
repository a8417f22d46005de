# %% [markdown]
# # QLoRA on a 4-bit GPT-2
#
# The base is quantized and frozen; beside each of its layers a LoRA adapter of rank 8 learns in
# float. It learns to write captions of pictures, is saved as any adapter of PEFT, and loads on the
# quantized base and on the float one.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowbit
import lowbit.peft
from lowbit.evaluation.generation import generate_sample

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
plt.rcParams |= {"figure.dpi": 96, "axes.spines.top": False, "axes.spines.right": False}
work = tempfile.TemporaryDirectory()
BASE, ADAPTER = Path(work.name) / "gpt2-int4", Path(work.name) / "adapter"


def find(variable, kind, name):
    """`name` in the folder that an environment variable gives, or in shared/ above this folder."""
    here = [parent / "shared" / kind for parent in (Path.cwd(), *Path.cwd().parents)]
    folders = [Path(os.environ[variable])] if variable in os.environ else here
    return next((folder / name for folder in folders if (folder / name).exists()), None)


# %% [markdown]
# The model is a small GPT-2 trained from scratch on WikiText-2, the captions are those of Multi30k.
# Where they are not at hand, the model of `lowbit demo` learns the end of its own text.

# %%
BATCH, LENGTH, STEPS = 4, 96, 60
folder = find("LOWBIT_MODELS", "models", "gpt2-wikitext2")
text = find("LOWBIT_DATA", "data", "translation/multi30k/train.en")
if folder and text:
    source, prompt = "a GPT-2 trained from scratch on WikiText-2", "A man in"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(text.read_text()[:400_000], return_tensors="pt").input_ids[0]
else:
    from lowbit.demo import DemoSettings
    from lowbit.demo.cache import trained

    demo = trained(DemoSettings(), progress=False)
    source, prompt = "the GPT-2 of `lowbit demo`", "Return a new"
    model, tokenizer, ids = demo.model, demo.tokenizer, demo.held_out

model.save_pretrained(Path(work.name) / "float")
lowbit.quantize(model, "int4", progress=False)
model.save_pretrained(BASE)
rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
batches = [rows[at : at + BATCH] for at in range(0, len(rows) - BATCH, BATCH)]
held_out, batches = batches[-8:], batches[:-8]
print(f"{source}: {model.num_parameters():,} parameters outside the quantized layers")

# %% [markdown]
# ## An adapter
#
# `import lowbit.peft` is all that PEFT needs. The codes are no parameters: nothing could change
# them.

# %%
base = AutoModelForCausalLM.from_pretrained(BASE)
torch.manual_seed(0)
model = get_peft_model(
    base,
    LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trained_ones = {name: p for name, p in model.named_parameters() if p.requires_grad}
assert all("lora_" in name for name in trained_ones)
print(f"{sum(p.numel() for p in trained_ones.values()):,} parameters learn")
print(base.transformer.h[0].attn.c_attn)


def loss_of(model):
    model.eval()
    with torch.no_grad():
        return sum(model(input_ids=b, labels=b).loss.item() for b in held_out) / len(held_out)


# %% [markdown]
# ## Training

# %%
before = loss_of(model)
optimizer = torch.optim.AdamW(trained_ones.values(), lr=2e-3)
losses = []
model.train()
for step in range(STEPS):
    batch = batches[step % len(batches)]
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
after = loss_of(model)
print(f"loss on text that it has not seen: {before:.3f} before, {after:.3f} after {STEPS} steps")
assert after < 0.95 * before or not text

# %%
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.plot(losses, color="#2a6f97")
ax.set(xlabel="step", ylabel="nats a token", title="Loss of each batch")
plt.show()

# %% [markdown]
# ## Saved and loaded
#
# The folder is PEFT's. `lowbit.peft.load` looks first whether the adapter fits the base.

# %%
model.save_pretrained(ADAPTER)
print(*sorted(f"{file.name}: {file.stat().st_size:,} bytes" for file in ADAPTER.glob("*.[js]*")))
again = lowbit.peft.load(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER)
on_float = PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained(Path(work.name) / "float"), ADAPTER
)
print(f"loaded on 4 bits {loss_of(again):.3f}, on the float model {loss_of(on_float):.3f}")
assert abs(loss_of(again) - after) <= 1e-6
for name, writer in (("before", AutoModelForCausalLM.from_pretrained(BASE)), ("after", again)):
    sample = generate_sample(writer, tokenizer, prompt, max_new_tokens=24, seed=0, top_k=20)
    print(f"{name}: {' '.join(sample.split())}")

# %% [markdown]
# ## Merged
#
# The sum of weight and adapter, quantized again by the same scheme. What is smaller than half a
# step of 4 bits is lost: what that costs is to be measured.

# %%
merged = again.merge_and_unload()
print(f"merged into 4 bits {loss_of(merged):.3f}, beside them {after:.3f}, without it {before:.3f}")
work.cleanup()
