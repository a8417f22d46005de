"""Peak memory of `lowbit quantize` on a random Llama-shaped float checkpoint of 4 GB.

    python bench/streaming_memory.py [--layers 14] [--write]

The checkpoint is made in a temporary folder (4 GB of disk) and removed. Peak resident size is what
the operating system reports for the process that quantizes.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import finish, result_page
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

RESULT = result_page("streaming-memory.md")
RUN = """
import json, resource, sys, time
import lowbit
imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
result = lowbit.quantize_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], progress=False)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "imports": imports * 1024,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "before": result.before.disk_bytes,
    "after": result.after.disk_bytes,
    "bits": result.after.bits_per_weight,
}))
"""


def make_checkpoint(folder: Path, layers: int) -> None:
    """Shapes of a one-billion-parameter Llama (width 2048, feed-forward 8192), float32."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in LlamaForCausalLM(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    weight_map = {}
    for number, (name, shape) in enumerate(shapes.items(), 1):
        file = f"model-{number:05}-of-{len(shapes):05}.safetensors"
        save_file({name: torch.randn(shape) * 0.02}, folder / file, metadata={"format": "pt"})
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def measure(recipe: str, source: Path, output: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(source), recipe, str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--recipes", default="int8,int4,int4-all")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    lines = [
        "# Peak memory of quantizing a checkpoint",
        "",
        f"`python bench/streaming_memory.py`, {time.strftime('%Y-%m-%d')}, torch"
        f" {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}."
        " Random Llama shape, float32; sizes in MB (10⁶ bytes).",
        "",
        "| recipe | float checkpoint | quantized | bits/weight | peak resident |"
        " of which imports | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "float"
        source.mkdir()
        make_checkpoint(source, options.layers)
        for recipe in options.recipes.split(","):
            r = measure(recipe, source, Path(work) / recipe)
            lines.append(
                f"| {recipe} | {r['before'] / 1e6:,.0f} | {r['after'] / 1e6:,.0f} |"
                f" {r['bits']:.2f} | {r['peak'] / 1e6:,.0f} | {r['imports'] / 1e6:,.0f} |"
                f" {r['seconds']:.0f} |"
            )
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
