"""QLoRA on a base that lowbit or bitsandbytes quantized; docs/results/qlora.md.

    python bench/qlora.py --work FOLDER [--models FOLDER] [--data FOLDER] [--steps 150] [--rounds 8]
                          [--threads 2] [--write]

A GPT-2 of 8.5 million parameters, trained from scratch on WikiText-2, learns captions of pictures
(Multi30k) by LoRA in every linear layer of its blocks. All bases learn the same batches in the same
order from the same first adapter. Loss: on the captions kept for it. Time: a step (forward and
backward pass, AdamW), all bases in turns on the same batch; ratios within a round. Memory: what the
linear layers of the blocks weigh, and what training adds to a fresh process at its peak. What is
measured is kept in the work folder: a run that is broken off goes on. Needs peft and bitsandbytes.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from apart import Apart
from machine import described, finish, result_page
from peft import LoraConfig, PeftModel, get_peft_model
from pieces import Pieces
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from turns import parser, ready, take_turns

import lowbit
import lowbit.peft  # noqa: F401  # lets PEFT adapt quantized layers
from lowbit.nn import QuantModule

SHARED = Path(__file__).parents[2] / "shared"
MODEL = "gpt2-wikitext2"
NF4, FLOAT = "bitsandbytes NF4", "float32"
BASES = (NF4, "int4", "int4-dynamic", FLOAT)
BATCH, LENGTH, RATE = 4, 128, 2e-3
HELD_OUT, MEMORY_STEPS = 24, 4
MEBI = 1 << 20


def base_of(models: str, name: str) -> nn.Module:
    folder = str(Path(models) / MODEL)
    if name == NF4:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map="cpu"
        )
    model = AutoModelForCausalLM.from_pretrained(folder)
    if name != FLOAT:
        lowbit.quantize(model, name, progress=False)
    return model


def adapted(models: str, name: str) -> PeftModel:
    """The base with an adapter that is the same for all."""
    base = base_of(models, name)
    torch.manual_seed(0)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=name != NF4,  # its layers are made from Conv1D, and store as nn.Linear does
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # whose numbers would be other ones for each base
    return model.train()


def batches_of(models: str, data: str, split: str) -> list[Tensor]:
    """The captions one after the other, in batches of LENGTH tokens."""
    tokenizer = AutoTokenizer.from_pretrained(Path(models) / MODEL)
    text = (Path(data) / "translation" / "multi30k" / f"{split}.en").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    whole = rows[: len(rows) // BATCH * BATCH].view(-1, BATCH, LENGTH)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return list(whole[order])


class Steps:
    """One model in training; each call is a step on the next batch."""

    def __init__(self, model: PeftModel, batches: list[Tensor]) -> None:
        self.model, self.batches, self.done = model, batches, 0
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def __call__(self) -> None:
        ids = self.batches[self.done % len(self.batches)]
        self.done += 1
        with torch.enable_grad():
            self.model(input_ids=ids, labels=ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def loss_of(model: PeftModel, batches: list[Tensor]) -> float:
    """In training mode, where dropout is 0: in evaluation bitsandbytes moves its weights to a
    layout that has no gradients."""
    return statistics.mean(model(input_ids=ids, labels=ids).loss.item() for ids in batches)


def learned(models: str, data: str, name: str, steps: int) -> dict[str, float]:
    """The loss before and after."""
    model = adapted(models, name)
    held_out = batches_of(models, data, "val")[:HELD_OUT]
    before = loss_of(model, held_out)
    step = Steps(model, batches_of(models, data, "train"))
    for _ in range(steps):
        step()
    return {"before": before, "after": loss_of(model, held_out)}


def weighs(models: str, name: str) -> float:
    """MiB of the weights of the blocks' linear layers, with all that belongs to them."""
    model = adapted(models, name)
    model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    return sum(map(_weight_bytes, model.modules())) / MEBI


def _weight_bytes(module: nn.Module) -> int:
    layer = getattr(module, "base_layer", None)
    if layer is None:
        return 0
    if isinstance(layer, QuantModule):
        held = [layer.packed.bytes] if layer.packed else layer.stored_weight.tensors().values()
    else:
        state = getattr(layer.weight, "quant_state", None)
        kept = [] if state is None else _tensors(vars(state))
        held = [layer.weight, *kept]
    return sum(t.nbytes for t in held)


def _tensors(state: dict[str, object]) -> list[Tensor]:
    """Those of bitsandbytes' statistics, which may be quantized themselves."""
    found = [t for t in state.values() if isinstance(t, Tensor)]
    inner = state.get("state2")
    return found if inner is None else found + _tensors(vars(inner))


def resident(field: str) -> float:
    """MiB of this process, as Linux tells: VmRSS now, VmHWM at most since its mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_of(models: str, data: str, name: str) -> Callable[[], float]:
    """In a process of its own: MiB that training adds to it, loading apart."""

    def run() -> float:
        model = adapted(models, name)
        Steps(model, [torch.zeros(1, 8, dtype=torch.long)])()  # what is imported at first use
        step = Steps(model, batches_of(models, data, "val"))
        Path("/proc/self/clear_refs").write_text("5")  # the mark begins here
        before = resident("VmRSS")
        for _ in range(MEMORY_STEPS):
            step()
        return resident("VmHWM") - before

    return run


def memory(models: str, data: str, name: str, threads: int) -> float:
    apart = Apart(threads, peak_of, models, data, name)
    try:
        return float(apart())
    finally:
        apart.close()


def times(models: str, data: str, rounds: int) -> dict[str, list[float]]:
    batches = batches_of(models, data, "train")
    return take_turns({name: Steps(adapted(models, name), batches) for name in BASES}, rounds)


def main() -> None:
    result = result_page("qlora.md")
    options = parser(__doc__.partition("\n")[0], result, rounds=8)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--models", default=str(SHARED / "models"))
    options.add_argument("--data", default=str(SHARED / "data"))
    options.add_argument("--steps", type=int, default=150)
    given = options.parse_args()
    ready(given.threads)
    torch.set_flush_denormal(True)
    where = given.models, given.data
    pieces = Pieces(given.work / "qlora.jsonl")
    taken = pieces.find("times", lambda: times(*where, given.rounds))
    lines = [
        "# QLoRA on a quantized base\n",
        "LoRA (rank 8, every linear layer of the blocks) on a GPT-2 of 8.5 million parameters that",
        "was trained from scratch on WikiText-2. It learns captions of pictures (Multi30k) in",
        f"{given.steps} steps of {BATCH} × {LENGTH} tokens with AdamW, rate {RATE:g}: the same",
        "batches, order and first adapter for all; written by `bench/qlora.py`. Loss: nats a token",
        "on captions kept for it. ×: beside bitsandbytes' NF4 (double quantization, float32",
        "products). Step: forward and backward pass and AdamW. Layers: what the adapted layers'",
        "weights take in memory. Training adds: what a fresh process grows by at its peak after a",
        "step on eight tokens.\n",
        described() + "\n",
        "| base | loss before | after | × | step, ms | × | layers, MiB | training adds, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {
        name: pieces.find(
            f"loss {name} {given.steps}", lambda n=name: learned(*where, n, given.steps)
        )
        for name in BASES
    }
    for name in BASES:
        loss = found[name]
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken[NF4], strict=True))
        held = pieces.find(f"weighs {name}", lambda n=name: weighs(given.models, n))
        added = pieces.find(f"peak {name}", lambda n=name: memory(*where, n, given.threads))
        lines.append(
            f"| {name} | {loss['before']:.3f} | {loss['after']:.3f}"
            f" | {loss['after'] / found[NF4]['after']:.3f}"
            f" | {1e3 * statistics.median(taken[name]):.0f} | {ratio:.2f}"
            f" | {held:.2f} | {added:.0f} |"
        )
    finish(lines, result, given.write)


if __name__ == "__main__":
    main()
