"""Greedy text of exported models in ONNX Runtime and OpenVINO, with keys and values kept from step
to step, token by token beside ours; written to docs/results/onnx-text.md.

    pip install ".[onnx]" openvino
    python bench/onnx_text.py [--data FOLDER] [--models FOLDER] [--only TEXT] [--write]

Two trained models (a GPT-2, and a BART from letters to sounds), a Llama and a Marian of random
weights. An exported model is fed with its own tokens; ours computes the whole text anew for each
token.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import Page, described, result_page
from pronunciation import Pronunciation
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
)

import lowbit
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.fuse import unfuse

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.interop.onnx.running import onnx_runtime, openvino  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"
RECIPES = ("int8-all", "int4-all", "int8-all-dynamic", "int8-static")
ROWS, PROMPT, ADDED = 16, 16, 48
RANDOM = {
    "Llama, random": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=704,
            max_position_embeddings=256,
            eos_token_id=None,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        )
    ),
    "Marian, random": lambda: MarianMTModel(
        MarianConfig(
            vocab_size=1000,
            decoder_vocab_size=1000,
            d_model=256,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=512,
            decoder_ffn_dim=512,
            max_position_embeddings=128,
            pad_token_id=999,
            decoder_start_token_id=999,
            eos_token_id=0,
            forced_eos_token_id=None,
        )
    ),
}
Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
READERS: dict[str, Callable[[Path], Run]] = {"ONNX Runtime": onnx_runtime, "OpenVINO": openvino}


@dataclass
class Text:
    """Prompts [ROWS, PROMPT] with a mask, and the first token that a decoder is given. A decoder
    alone has its padding before the text."""

    ids: np.ndarray
    mask: np.ndarray
    start: int | None = None

    @property
    def begun(self) -> np.ndarray:
        return self.ids if self.start is None else np.full((len(self.ids), 1), self.start)


def masked(before: bool) -> np.ndarray:
    """Every second row is shorter than the others."""
    mask = np.ones((ROWS, PROMPT), np.int64)
    mask[::2, slice(None, 5) if before else slice(-5, None)] = 0
    return mask


def random_text(model: PreTrainedModel) -> Text:
    ids = np.random.default_rng(0).integers(1, 998, (ROWS, PROMPT))
    two = model.config.is_encoder_decoder
    return Text(ids, masked(not two), model.config.decoder_start_token_id if two else None)


def wikitext(data: Path, source: Path) -> Text:
    text = (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8")
    ids = load_tokenizer(source)(text, verbose=False).input_ids[: 40 * ROWS * PROMPT]
    return Text(np.array(ids).reshape(ROWS, -1)[:, :PROMPT], masked(True))


def words(source: Path) -> Text:
    known = Pronunciation(source)
    some = known.tokenizer(list(known.words)[:ROWS], padding=True, return_tensors="pt")
    start = known.model.config.decoder_start_token_id
    return Text(some["input_ids"].numpy(), some["attention_mask"].numpy(), start)


def positions(mask: np.ndarray) -> np.ndarray:
    return np.maximum(mask.cumsum(1) - 1, 0)


def ours(model: PreTrainedModel, text: Text) -> Iterator[np.ndarray]:
    """Logits [ROWS, vocabulary] of each step, without a cache. Is sent the next tokens."""
    written = text.begun
    while True:
        if text.start is None:
            mask = np.pad(text.mask, ((0, 0), (0, written.shape[1] - PROMPT)), constant_values=1)
            given = {"input_ids": written, "attention_mask": mask, "position_ids": positions(mask)}
        else:
            given = {
                "input_ids": text.ids,
                "attention_mask": text.mask,
                "decoder_input_ids": written,
            }
        tensors = {name: torch.from_numpy(array) for name, array in given.items()}
        taken = yield model(**tensors, use_cache=False).logits[:, -1].numpy()
        written = np.concatenate((written, taken), 1)


def theirs(folder: Path, reader: Callable[[Path], Run], model: PreTrainedModel, text: Text):
    """The same of an exported model, with keys and values of the steps before."""
    return (of_decoder if text.start is None else of_two)(folder, reader, model, text)


def of_decoder(folder: Path, reader: Callable[[Path], Run], model: PreTrainedModel, text: Text):
    run, config = reader(folder / "model.onnx"), model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    empty = np.zeros((ROWS, heads, 0, config.hidden_size // config.num_attention_heads), "f")
    names = itertools.product(range(config.num_hidden_layers), ("key", "value"))
    past = {f"past_key_values.{layer}.{part}": empty for layer, part in names}
    given, mask = text.ids, text.mask
    while True:
        own = {"position_ids": positions(mask)[:, -given.shape[1] :]}
        found = run({"input_ids": given, "attention_mask": mask} | own | past)
        past = kept(found)
        given = yield found["logits"][:, -1]
        mask = np.concatenate((mask, np.ones_like(given)), 1)


def of_two(folder: Path, reader: Callable[[Path], Run], model: PreTrainedModel, text: Text):
    parts = ("encoder", "decoder", "decoder_with_past")
    encode, run, then = (reader(folder / f"{part}_model.onnx") for part in parts)
    states = encode({"input_ids": text.ids, "attention_mask": text.mask})["last_hidden_state"]
    own = {"encoder_attention_mask": text.mask, "encoder_hidden_states": states}
    given, past = text.begun, {}
    while True:
        found = run(own | past | {"input_ids": given})
        past, run = past | kept(found), then
        given = yield found["logits"][:, -1]


def kept(found: Arrays) -> dict[str, np.ndarray]:
    present = (name for name in found if name.startswith("present"))
    return {name.replace("present", "past_key_values"): found[name] for name in present}


def unfused(folder: Path) -> PreTrainedModel:
    model = load_model(folder)
    unfuse(model)
    model.set_attn_implementation("eager")
    return model


@dataclass
class Compared:
    """same: tokens before a row leaves ours. error: of the logits of these. margins: of rows that
    leave: by how much our logits preferred our token to theirs, in standard deviations."""

    same: int
    error: float
    margins: list[float]


def compare(right: Iterator[np.ndarray], found: Iterator[np.ndarray]) -> Compared:
    """Each writes on with its own tokens."""
    together, same, margins = np.ones(ROWS, bool), 0, []
    expected, got = next(right), next(found)
    away = size = 0.0
    for _ in range(ADDED):
        away += float(np.square(got - expected)[together].sum())
        size += float(np.square(expected)[together].sum())
        ours, theirs = expected.argmax(1), got.argmax(1)
        for row in np.flatnonzero(together & (ours != theirs)):
            logits = expected[row]
            margins.append(float((logits[ours[row]] - logits[theirs[row]]) / logits.std()))
        together &= ours == theirs
        same += int(together.sum())
        expected, got = right.send(ours[:, None]), found.send(theirs[:, None])
    return Compared(same, (away / size) ** 0.5, margins)


def rows(given: argparse.Namespace, place: Path) -> Iterator[str]:
    gpt2, bart = given.models / "gpt2-wikitext2", given.models / "bart-g2p-us"
    models: dict[str, tuple[Path, Callable[[PreTrainedModel], Text]]] = {
        "GPT-2": (gpt2, lambda model: wikitext(given.data, gpt2)),
        "BART": (bart, lambda model: words(bart)),
    }
    for name, make in RANDOM.items():
        make().save_pretrained(place / name)
        models[name] = place / name, random_text
    for name, (source, text_of) in models.items():
        for recipe in RECIPES:
            if given.only not in f"{name} {recipe}":
                continue
            model = load_model(source)
            text = text_of(model)
            batch = torch.from_numpy(text.ids)
            needs = {"calibration": batch} if recipe.endswith("static") else {}
            if needs and text.start is not None:
                continue  # it would be calibrated on a decoder's inputs too
            lowbit.quantize(model, recipe, progress=False, **needs)
            own, out = place / f"{name}-{recipe}", place / f"{name}-{recipe}-onnx"
            model.save_pretrained(own)
            lowbit.export_checkpoint(own, "onnx", out)
            writers = {
                name: theirs(out, reader, model, text) for name, reader in READERS.items()
            } | {"lowbit, unfused": ours(unfused(own), text)}
            for program, writer in writers.items():
                found = compare(ours(model, text), writer)
                most = f"{max(found.margins):.4f}" if found.margins else ""
                yield (
                    f"| {name} | {recipe} | {program} | {found.same} of {ROWS * ADDED} |"
                    f" {ROWS - len(found.margins)} of {ROWS} | {most} | {found.error:.1e} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--only", default="", help="models and recipes that hold this text")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    page = Page(result_page("onnx-text.md") if given.write else None)
    page.say(
        "# Greedy text of exported models",
        "",
        f"{ROWS} prompts, {ADDED} tokens after each, half of the prompts padded. An exported model"
        " keeps keys and values from step to step; lowbit computes the whole text anew. Each writes"
        " on with its own tokens, and the end token is one like the others. GPT-2 and BART are"
        " trained. Where a row leaves ours, the margin is by how much our logits preferred our"
        " token, in standard deviations of these logits; of all rows the largest. Errors are of the"
        " logits before that, relative. Beside them, lowbit itself without fused layers and"
        " attention: the same model, with sums in another order. Written by `bench/onnx_text.py`."
        f" {described()}",
        "",
        "| model | recipe | program | same tokens | same rows | margin | error of logits |",
        "|---|---|---|---|---|---|---|",
    )
    with tempfile.TemporaryDirectory() as place:
        for row in rows(given, Path(place)):
            page.say(row)


if __name__ == "__main__":
    main()
