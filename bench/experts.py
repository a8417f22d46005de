"""Mixtures of experts, decoding and prefill: lowbit beside llama.cpp and torch's bfloat16.

    pip install ".[bench]"
    python bench/experts.py [--shape qwen3] [--layers 6] [--target avx2] [--work FOLDER] [--write]
    python bench/experts.py --shape olmoe --bits --rounds 1    # torch alone

Random weights at real shapes: Qwen3-30B-A3B cut to 6 layers, or OLMoE-1B-7B whole. The checkpoint
is made in bfloat16, expert by expert, and quantized by streaming: no process ever holds the float
model but torch's. llama.cpp's files are made by its own quantizer from a float16 file of the same
shape. *Decoding*: tokens per second from one token on; every token is a given one, as a model of
random weights would say the same again, and choose the same experts, which the caches then hold.
*Prefill*: tokens per second of 512, with the logits of the last only. *Experts alone*: the two
products of every layer's mixture with experts chosen by chance, in bytes of the chosen experts
per second, beside one linear layer of as many bytes.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import targets
import torch
from llama_cpp_model import LlamaCpp, built_for, files
from machine import described, finish
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from turns import ready, take_turns

import lowbit
from lowbit.formats import AffineLayout, ExpertsLayout, group
from lowbit.kernels import experts, linear
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.packed_layout import PackedLayout

SHAPES: dict[str, tuple[str, Callable[[], PreTrainedConfig]]] = {
    "qwen3": (
        "Qwen3-30B-A3B",
        lambda: Qwen3MoeConfig(
            vocab_size=151_936,
            hidden_size=2048,
            moe_intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        ),
    ),
    # The default of transformers has experts of twice that size.
    "olmoe": (
        "OLMoE-1B-7B",
        lambda: OlmoeConfig(intermediate_size=1024, max_position_embeddings=2048),
    ),
}
# By bits, llama.cpp's type of as many.
PEERS = {4: "Q4_0", 3: "Q3_K_M", 2: "Q2_K"}
NEW_TOKENS, PROMPT = 32, 512
# Not ru_maxrss, which a process has from the larger one that started it.
RUN = """
import json, sys, time
import lowbit
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
imports, start = peak(), time.perf_counter()
lowbit.quantize_checkpoint(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], progress=False)
print(json.dumps([time.perf_counter() - start, peak() - imports]))
"""
LOAD = """
import json, sys, torch, lowbit
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM, OlmoeForCausalLM
def held():
    fields = open("/proc/self/status").read().split("Rss")
    return sum(int(f.split()[1]) for f in fields if f.startswith(("Anon:", "Shmem:"))) * 1024
before = held()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    model(torch.tensor([[5, 6, 7]]), logits_to_keep=1)
print(json.dumps([held() - before, lowbit.footprint(model).stored_bytes]))
"""


def stored_tensors(config: PreTrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a checkpoint: experts one by one, as they are published."""
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    for name, tensor in state.items():
        around, _, own = name.rpartition(".")
        if own == "gate_up_proj":
            count, rows, columns = tensor.shape
            for i in range(count):
                for half in ("gate_proj", "up_proj"):
                    yield f"{around}.{i}.{half}.weight", (rows // 2, columns)
        elif own == "down_proj":
            for i in range(len(tensor)):
                yield f"{around}.{i}.down_proj.weight", tuple(tensor.shape[1:])
        else:
            yield name, tuple(tensor.shape)


def make_checkpoint(config: PreTrainedConfig, folder: Path) -> None:
    """Random bfloat16 shards, a layer each."""
    torch.manual_seed(0)
    config.architectures = [type(AutoModelForCausalLM.from_config(small(config))).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    layer = ""

    def flush() -> None:
        if shard:
            file = f"model-{layer or 'rest'}-{len(weight_map)}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, file))
            shard.clear()

    for name, shape in stored_tensors(config):
        own = name.split(".")[2] if ".layers." in name else ""
        if own != layer:
            flush()
            layer = own
        one = len(shape) == 1
        shard[name] = torch.ones(shape) if one else torch.randn(shape).mul_(0.02)
        shard[name] = shard[name].to(torch.bfloat16)
    flush()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def small(config: PreTrainedConfig) -> PreTrainedConfig:
    """One so small that the model can be built, of the same class."""
    return type(config)(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=8,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_experts=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


def recipe(bits: int, activations: str) -> dict[str, Any]:
    scheme = {"scheme": "zero-point", "bits": bits, "granularity": "group:64"}
    linear_rule = {"match": "@linear", **scheme, "activations": activations}
    return {"name": f"int{bits}", "rules": [{"match": "@embedding", **scheme}, linear_rule]}


def asked(code: str, *arguments: str) -> Any:
    """What a process of its own prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


class Given(LogitsProcessor):
    """Lets a search choose given tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.tokens[ids.shape[1] % len(self.tokens)]] = torch.inf
        return scores


def decoding(model: PreTrainedModel, tokens: list[int], generate: Callable[..., Any]) -> Callable:
    model.generation_config.eos_token_id = None
    first = torch.tensor([[tokens[0]]])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    return lambda: generate(model, first, logits_processor=[Given(tokens)], **options)


def prefill(model: PreTrainedModel, tokens: list[int]) -> Callable[[], Any]:
    prompt = torch.tensor([tokens[:PROMPT]])
    return lambda: model(prompt, logits_to_keep=1, use_cache=False)


def alone(config: PreTrainedConfig, bits: int) -> dict[str, tuple[Callable[[], object], float]]:
    """By name a run, and the bytes that it reads: a layer's mixture, and one layer of as many."""
    count, top = config.num_experts, config.num_experts_per_tok
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    each = AffineLayout(bits, group(64), zero_point=True)
    layers, repeats = 3, 20
    forms = [
        ExpertsPackedLayout(ExpertsLayout(count, each), count * rows, columns)
        for rows, columns in ((2 * inner, config.hidden_size), (config.hidden_size, inner))
    ]
    products = [experts.product(form, "dynamic") for form in forms]
    weights = [[random_bytes(form.size) for form in forms] for _ in range(layers)]
    x, z = torch.randn(1, config.hidden_size), torch.randn(top, inner)
    chosen = [torch.randperm(count)[:top][None] for _ in range(layers * repeats)]

    def mixture() -> None:
        for i, ids in enumerate(chosen):
            up, down = weights[i % layers]
            products[0](x, ids, up, None, "silu")
            products[1](z, ids.reshape(-1, 1), down, None)

    read = top * sum(form.stride for form in forms)
    form = PackedLayout(each, int(read / forms[0].stride * 2 * inner) // 16 * 16, x.shape[1])
    single = linear.product(form, "dynamic")
    packed = [random_bytes(form.size) for _ in range(max(2, int(3e8 / form.size)))]

    def one() -> None:
        for i in range(layers * repeats):
            single(x, packed[i % len(packed)], None)

    calls = layers * repeats
    return {"experts": (mixture, calls * read), "one layer": (one, calls * form.size)}


def random_bytes(size: int) -> Tensor:
    return torch.randint(0, 64, (size,), dtype=torch.uint8)


def prepared(options: Any, config: PreTrainedConfig, work: Path) -> dict[str, Any]:
    """The files of all contenders, unless they are there; what making them took, and sizes."""
    told = work / "facts.json"
    facts: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
    source = work / "float"
    if not source.exists():
        source.mkdir()
        make_checkpoint(config, source)
    for bits in options.bits:
        output = work / f"int{bits}"
        if not output.exists():
            text = json.dumps(recipe(bits, options.activations))
            facts[f"streaming {bits}"] = asked(RUN, str(source), text, str(output))
            facts[f"memory {bits}"] = asked(LOAD, str(output))
            told.write_text(json.dumps(facts))
    files(config, [PEERS[bits] for bits in options.bits], work)
    return facts | {"float bytes": size_of(source), "bits": options.bits}


def measured(options: Any, config: PreTrainedConfig, work: Path) -> dict[str, Any]:
    """Seconds of every contender by name, beside what `prepared` tells. Of each number of bits the
    two models are loaded, and dropped."""
    tokens = torch.randint(5, config.vocab_size, (PROMPT,)).tolist()
    facts = prepared(options, config, work)
    facts["seconds"] = {}
    for bits in options.bits:
        kind = PEERS[bits]
        model = AutoModelForCausalLM.from_pretrained(work / f"int{bits}", dtype=torch.float32)
        model.eval().set_attn_implementation("lowbit")
        peer = LlamaCpp(work / f"{kind}.gguf", max(1024, PROMPT))
        runs: dict[str, Callable[[], object]] = {
            f"decoding lowbit {bits}": decoding(model, tokens, lowbit.generate),
            f"decoding {kind}": partial(peer.run, tokens[:NEW_TOKENS], 1, options.threads),
            f"prefill lowbit {bits}": prefill(model, tokens),
            f"prefill {kind}": partial(peer.run, tokens, PROMPT, options.threads),
        }
        facts["seconds"] |= best(runs, options.rounds)
        runs.clear()
        del model
        peer.close()
        single = alone(config, bits)
        taken = best({name: run for name, (run, _) in single.items()}, options.rounds)
        for name, (_, read) in single.items():
            facts[f"{name} {bits}"] = read / taken[name] / 1e9
    if not options.without_torch:
        model = AutoModelForCausalLM.from_pretrained(work / "float", dtype=torch.bfloat16).eval()
        runs = {
            "decoding torch": decoding(model, tokens, type(model).generate),
            "prefill torch": prefill(model, tokens),
        }
        facts["seconds"] |= best(runs, options.rounds)
    return facts


def best(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    return {name: min(taken) for name, taken in take_turns(runs, rounds).items()}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def table(title: str, facts: dict[str, Any]) -> list[str]:
    taken = facts["seconds"]

    def rate(kind: str, name: str) -> float:
        tokens = NEW_TOKENS if kind == "decoding" else PROMPT
        return tokens / taken[f"{kind} {name}"]

    lines = [
        f"## {title}",
        "",
        f"{facts['float bytes'] / 1e9:.1f} GB in bfloat16.",
        "",
        "| | decoding, tokens/s | / peer | prefill, tokens/s | / peer |",
        "|---|---:|---:|---:|---:|",
    ]
    if "decoding torch" in taken:
        decode, read = rate("decoding", "torch"), rate("prefill", "torch")
        lines.append(f"| torch bfloat16 | {decode:.1f} | | {read:.0f} | |")
    for bits in facts["bits"]:
        peer, own = PEERS[bits], f"lowbit {bits}"
        lines += [
            f"| llama.cpp {peer} | {rate('decoding', peer):.1f} | 1 | {rate('prefill', peer):.0f}"
            " | 1 |",
            f"| lowbit int{bits}-all-dynamic | {rate('decoding', own):.1f}"
            f" | {rate('decoding', own) / rate('decoding', peer):.2f} | {rate('prefill', own):.0f}"
            f" | {rate('prefill', own) / rate('prefill', peer):.2f} |",
        ]
    if facts["bits"]:
        lines += [
            "",
            "| bits | experts alone, GB/s | one layer, GB/s | share |",
            "|---|---:|---:|---:|",
        ]
    for bits in facts["bits"]:
        mixture, one = facts[f"experts {bits}"], facts[f"one layer {bits}"]
        lines.append(f"| {bits} | {mixture:.1f} | {one:.1f} | {mixture / one:.0%} |")
    made = [bits for bits in facts["bits"] if f"memory {bits}" in facts]
    if made:  # by this call, or one before it
        lines += [
            "",
            "| bits | streaming: seconds | above the imports, MB | stored, MB | in memory, MB |",
            "|---|---:|---:|---:|---:|",
        ]
    for bits in made:
        seconds, peak = facts[f"streaming {bits}"]
        memory, stored = facts[f"memory {bits}"]
        lines.append(
            f"| {bits} | {seconds:.0f} | {peak / 1e6:,.0f} | {stored / 1e6:,.0f} |"
            f" {memory / 1e6:,.0f} |"
        )
    return lines


def main() -> None:
    options_of = targets.parser(__doc__)
    options_of.add_argument("--threads", type=int, default=2)
    options_of.add_argument("--rounds", type=int, default=5)
    options_of.add_argument("--shape", choices=SHAPES, default="qwen3")
    options_of.add_argument("--layers", type=int, help="fewer than the shape has")
    options_of.add_argument("--vocabulary", type=int, help="smaller than the shape has")
    options_of.add_argument("--activations", choices=("dynamic", "float"), default="dynamic")
    options_of.add_argument("--bits", type=int, nargs="*", choices=PEERS, default=[*PEERS])
    options_of.add_argument("--without-torch", action="store_true")
    options_of.add_argument(
        "--work",
        type=Path,
        help="where files are made and stay, 20 GB and more: a later call of"
        " the same shape measures only",
    )
    options_of.add_argument("--prepare", action="store_true", help="make the files, and no more")
    options = options_of.parse_args()
    target = targets.enter(options.target)
    ready(options.threads)
    name, make = SHAPES[options.shape]
    config = make()
    layers = config.num_hidden_layers = options.layers or config.num_hidden_layers
    config.vocab_size = options.vocabulary or config.vocab_size
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if options.prepare:
            prepared(options, config, work)
            return
        facts = measured(options, config, work)
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    title = f"{name}, {layers} layers, {config.vocab_size:,} words, {threads}"
    page = targets.page(f"experts-{options.shape}", target)
    lines = [
        "# Mixtures of experts",
        "",
        f"`python bench/experts.py`, {time.strftime('%Y-%m-%d')}, target {target}. {described()}"
        f" llama.cpp as built by llama-cpp-python {llama_cpp.__version__} for {built_for()}. Best"
        " times of contenders that take turns; random weights.",
        "",
        *table(title, facts),
    ]
    finish(lines, page, options.write)


if __name__ == "__main__":
    main()
