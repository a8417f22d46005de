"""Files that llama.cpp runs, with codes of lowbit's solvers and with those of its own quantizer, in
the same types; written to docs/results/gguf.md.

    python bench/gguf_files.py [--data FOLDER] [--models FOLDER] [--only TEXT] [--write]

A language model of 8.5 million parameters trained on WikiText-2, its linear layers in the type and
its table in float32. llama.cpp evaluates all of them. Rows that are measured are kept beside the
page, so that an interrupted run goes on; --write makes the page of all that are there.
"""

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from machine import described, finish, result_page
from mean_squares import mean_squares

import lowbit
from lowbit import Recipe, Rule
from lowbit.calibration import texts
from lowbit.checkpoint.atomic_write import staged_file
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.interop.gguf.blocks import FLOATS
from lowbit.interop.gguf.blocks import TYPES as BLOCKS
from lowbit.interop.gguf.header import read_header

SHARED = Path(__file__).parents[2] / "shared"
CONTEXT = 256
_SILENT = llama_cpp.llama_log_callback(lambda *_: None)
# Type -> the rule of a recipe that fills it, and llama.cpp's name of a file of it.
TYPES: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"Q{bits}_0": (
            {"scheme": "absmax", "bits": bits, "granularity": "group:32"},
            f"Q{bits}_0",
        )
        for bits in (8, 5, 4)
    },
    **{
        f"Q{bits}_1": (
            {"scheme": "zero-point", "zero": "float", "bits": bits, "granularity": "group:32"},
            f"Q{bits}_1",
        )
        for bits in (5, 4)
    },
    **{
        f"Q{bits}_K": ({"scheme": "k-quant", "bits": bits}, own)
        for bits, own in ((6, "Q6_K"), (5, "Q5_K_M"), (4, "Q4_K_M"), (3, "Q3_K_M"), (2, "Q2_K"))
    },
}
SOLVERS: dict[str, str | dict[str, Any]] = {
    "nearest": "nearest",
    "gptq": "gptq",
    "gptq, tuned": {"name": "gptq", "tune": 4},
}
OWN, MATRIX = "llama.cpp", "llama.cpp, importance matrix"
FLOAT = "float32"
# Of plain numbers and of blocks, by the number of the type: (weights, bytes).
SIZES = {number: (1, dtype.itemsize) for number, dtype in FLOATS.values()} | {
    kind.number: (kind.weights, kind.bytes) for kind in BLOCKS.values()
}


@dataclass(frozen=True)
class Row:
    """One file: bytes of all its tensors, seconds of making it."""

    kind: str
    codes: str
    bytes: int
    perplexity: float
    kl: float
    top1: float
    seconds: float


class LlamaCpp:
    """Logits of a file, as llama.cpp computes them."""

    def __init__(self, file: Path) -> None:
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = CONTEXT
        asked.n_threads = asked.n_threads_batch = torch.get_num_threads()
        self._context = llama_cpp.llama_init_from_model(self._model, asked)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._tokens = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """[tokens, vocabulary], in an empty context."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, number in enumerate(ids):
            batch.token[at], batch.pos[at], batch.logits[at] = number, at, 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode")
        llama_cpp.llama_batch_free(batch)
        found = llama_cpp.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(found, (len(ids), self._tokens)).copy())


class Bench:
    def __init__(
        self, models: Path, data: Path, blocks: int, samples: int, keep: Path, folder: Path
    ) -> None:
        self.source, self.data, self.folder = models / "gpt2-wikitext2", data / "wikitext-2", folder
        self.model, self.tokenizer = load_model(self.source), load_tokenizer(self.source)
        self.samples, self.keep = samples, keep
        self.settings = {"blocks": blocks, "samples": samples}
        kept = json.loads(keep.read_text()) if keep.exists() else {**self.settings, "rows": []}
        rows = [Row(**row) for row in kept.pop("rows")]
        if kept != self.settings:
            raise SystemExit(f"{keep} has rows of {kept}, not of {self.settings}: --keep another")
        self.rows = {(row.kind, row.codes): row for row in rows}
        text = (self.data / "test.txt").read_text(encoding="utf-8")
        ids = self.tokenizer(text, verbose=False).input_ids[: blocks * CONTEXT]
        self.blocks = [ids[start : start + CONTEXT] for start in range(0, len(ids), CONTEXT)]
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))

    @cached_property
    def float_file(self) -> Path:
        file = self.folder / "float.gguf"
        lowbit.export_checkpoint(self.source, "gguf", file, overwrite=True)
        return file

    @cached_property
    def batches(self) -> list[dict[str, torch.Tensor]]:
        train = self.data / "train.txt"
        return texts.read(train, self.model, self.tokenizer, self.samples, CONTEXT).batches

    def measure(self, kind: str, codes: str, make: Callable[[], Path]) -> Row:
        """The row of that type and those codes: what is kept, or what is measured now."""
        if (kind, codes) not in self.rows:
            start = time.perf_counter()
            file = make()
            seconds = time.perf_counter() - start
            self.rows[kind, codes] = self._evaluated(kind, codes, file, seconds)
            stored = self.settings | {"rows": [asdict(row) for row in self.rows.values()]}
            with staged_file(self.keep) as new:
                new.write_text(json.dumps(stored, indent=1) + "\n")
        return self.rows[kind, codes]

    def _evaluated(self, kind: str, codes: str, file: Path, seconds: float) -> Row:
        right, found = LlamaCpp(self.float_file), LlamaCpp(file)
        loss = kl = same = 0.0
        for ids in self.blocks:
            expected = right.logits(ids).double().log_softmax(1)
            logits = found.logits(ids).double().log_softmax(1)
            loss -= logits[range(len(ids) - 1), ids[1:]].sum().item()
            kl += (expected.exp() * (expected - logits)).sum().item()
            same += (expected.argmax(1) == logits.argmax(1)).sum().item()
        tokens = sum(map(len, self.blocks))
        right.close()
        found.close()
        header = read_header(file, SIZES)
        size = sum(tensor.bytes for tensor in header.tensors.values())
        value = float(np.exp(loss / (tokens - len(self.blocks))))
        return Row(kind, codes, size, value, kl / tokens, same / tokens, seconds)

    def solved(self, kind: str, solver: str) -> Path:
        """A file with our codes."""
        linear = Rule.from_dict({"match": "@linear"} | TYPES[kind][0])
        rules = (Rule("@embedding"), Rule("@head"), linear)
        model = load_model(self.source)
        needs = {} if solver == "nearest" else {"calibration": self.batches}
        lowbit.quantize(model, Recipe(rules, kind), solver=SOLVERS[solver], progress=False, **needs)
        folder = self.folder / f"{kind}-{solver}"
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        lowbit.export_checkpoint(folder, f"gguf:{kind.lower()}", folder / "model.gguf", True)
        return folder / "model.gguf"

    def peer(self, kind: str, matrix: bool) -> Path:
        """A file with llama.cpp's own codes."""
        file = self.folder / f"{kind}-{matrix}.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{TYPES[kind][1]}")
        options.pure, options.nthread = True, torch.get_num_threads()
        options.token_embedding_type = llama_cpp.GGML_TYPE_F32
        if matrix:
            named = self._matrix
            entries = (llama_cpp.llama_model_imatrix_data * (len(named) + 1))()
            for entry, (name, values) in zip(entries, named.items(), strict=False):
                entry.name, entry.size = name.encode(), values.size
                entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            options.imatrix = entries
        paths = str(self.float_file).encode(), str(file).encode()
        if llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp could not write {kind}")
        return file

    @cached_property
    def _matrix(self) -> dict[str, np.ndarray]:
        """Mean x² of every input of the linear layers, as llama.cpp's `llama-imatrix` has it."""
        names = {
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        }
        found = {}
        for name, x in mean_squares(self.model, self.batches).items():
            _, _, block, part = name.split(".", 3)
            found[f"blk.{block}.{names[part]}.weight"] = np.ascontiguousarray(x, np.float32)
        return found


def measurements(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Path]]]:
    """(type, codes, how its file is made), the most telling first."""
    yield FLOAT, FLOAT, lambda: bench.float_file
    for kind in reversed(TYPES):
        yield kind, OWN, lambda kind=kind: bench.peer(kind, False)
        yield kind, MATRIX, lambda kind=kind: bench.peer(kind, True)
    for solver in ("gptq", "gptq, tuned", "nearest"):
        for kind in reversed(TYPES):
            yield kind, f"lowbit, {solver}", lambda k=kind, s=solver: bench.solved(k, s)


def page(bench: Bench, blocks: int, samples: int) -> Iterator[str]:
    yield "# GGUF: codes of lowbit's solvers beside those of llama.cpp's quantizer"
    yield ""
    yield "The same model in files of the same types and bytes, all run by llama.cpp. The linear"
    yield "layers of a language model of 8.5 million parameters are in the type, its table is"
    yield f"float32. Perplexity of the first {blocks} blocks of {CONTEXT} WikiText-2 test tokens,"
    yield "KL divergence (nats a token) from the float32 file, and agreement on the first token."
    yield f"Solvers and the importance matrix saw {samples} windows of {CONTEXT} tokens of the"
    yield "training text. The matrix holds the mean square of each input, computed here, as"
    yield "llama-imatrix does. llama.cpp's quantizer ran with `pure`, so that every linear layer is"
    yield "of the type. Bytes are of all tensors. Seconds are of making the file, on a machine that"
    yield "did other work too. Rows are kept from run to run, on several processors. Written by"
    yield "`bench/gguf_files.py`; the last run's processor follows."
    yield described() + f" llama-cpp-python {llama_cpp.__version__}."
    yield ""
    columns = ("type", "codes", "bytes", "perplexity", "KL divergence", "of llama.cpp's")
    columns += ("same token", "seconds")
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    order = [FLOAT, *TYPES]
    for row in sorted(bench.rows.values(), key=lambda row: (order.index(row.kind), -row.kl)):
        own = bench.rows.get((row.kind, OWN))
        share = f"{row.kl / own.kl:.2f}" if own else ""
        yield (
            f"| {row.kind} | {row.codes} | {row.bytes:,} | {row.perplexity:.3f} | {row.kl:.5f} |"
            f" {share} | {row.top1:.2%} | {row.seconds:.0f} |"
        )
    yield ""
    yield "What is not listed has not been measured yet."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--only", default="", help="rows whose type or codes hold this text")
    parser.add_argument("--keep", type=Path, default=result_page("gguf.json"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            options.models,
            options.data,
            options.blocks,
            options.samples,
            options.keep,
            Path(folder),
        )
        for kind, codes, make in measurements(bench):
            if options.only in f"{kind} {codes}":
                print(bench.measure(kind, codes, make), flush=True)
        lines = list(page(bench, options.blocks, options.samples))
    finish(lines, result_page("gguf.md"), options.write)


if __name__ == "__main__":
    main()
