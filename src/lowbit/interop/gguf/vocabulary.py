"""A tokenizer as llama.cpp reads it: keys of a GGUF file's metadata.

Four kinds: byte-level BPE ("gpt2"), BPE over characters as sentencepiece makes it ("llama"),
unigrams ("t5") and WordPiece ("bert"). How text is split before BPE has a name there, which is
found by the patterns themselves. Source: llama.cpp's `src/llama-vocab.cpp`.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from lowbit.checkpoint.documents import reading
from lowbit.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# What separates a word's beginning in sentencepiece.
BLANK = "\u2581"
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is split, step by step -> llama.cpp's name of it.
SPLITS = {
    (GPT2_SPLIT,): "gpt-2",
    ("digits", GPT2_SPLIT): "smollm",
    (_ENGLISH + r"\p{L}+|\p{N}{1,3}" + _REST,): "llama-bpe",
    (_ENGLISH + r"\p{L}+|\p{N}" + _REST,): "qwen2",
}
# Key after "tokenizer.ggml." -> the tokenizer's attributes that may have it, the first one first.
SPECIAL = {
    "bos_token_id": ("bos_token_id", "cls_token_id"),
    "eos_token_id": ("eos_token_id", "sep_token_id"),
    "unknown_token_id": ("unk_token_id",),
    "seperator_token_id": ("sep_token_id",),
    "padding_token_id": ("pad_token_id",),
    "mask_token_id": ("mask_token_id",),
}


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """Keys and values for a model whose table has `size` rows.

    Raises InputError for a tokenizer that llama.cpp cannot be told of.
    """
    with reading("the tokenizer", "exported"):
        stored = json.loads(tokenizer.backend_tokenizer.to_str())
    model = stored["model"]
    described = KINDS.get(model["type"])
    if described is None:
        raise InputError(
            f"the tokenizer is of the kind {model['type']}; GGUF holds {', '.join(KINDS)}"
        )
    kind = described(stored)
    found = {f"tokenizer.ggml.{key}": value for key, value in kind.items()}
    tokens, types, scores = _tokens(stored, kind.get("scores"), size)
    spelled = [_phantom(token, each) for token, each in zip(tokens, types, strict=True)]
    found["tokenizer.ggml.tokens"] = spelled if kind["model"] == "bert" else tokens
    found["tokenizer.ggml.token_type"] = types
    if scores:
        found["tokenizer.ggml.scores"] = scores
    for key, names in SPECIAL.items():
        ids = [getattr(tokenizer, name, None) for name in names]
        if (known := next((i for i in ids if i is not None), None)) is not None:
            found[f"tokenizer.ggml.{key}"] = known
    if kind["model"] != "bert":  # which always has both of its own
        ids = tokenizer("a").input_ids
        found["tokenizer.ggml.add_bos_token"] = ids[:1] == [tokenizer.bos_token_id]
        found["tokenizer.ggml.add_eos_token"] = ids[-1:] == [tokenizer.eos_token_id]
    if isinstance(tokenizer.chat_template, str):
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _bpe(stored: Mapping[str, Any]) -> dict[str, Any]:
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in stored["model"]["merges"]]
    steps = tuple(_steps(stored.get("pre_tokenizer")))
    if stored["model"].get("byte_fallback") or steps in ((), ("metaspace",)):
        # The pair that is merged first is the one whose whole has the highest score.
        ranks: dict[str, float] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault("".join(pair), -float(rank))
        return {
            "model": "llama",
            "pre": "default",
            "scores": ranks,
            "add_space_prefix": _prefixed(stored),
        }
    if steps not in SPLITS:
        raise InputError(
            f"the tokenizer splits text by {list(steps)}, which llama.cpp has no name for;"
            f" it knows that of {', '.join(SPLITS.values())}"
        )
    return {"model": "gpt2", "pre": SPLITS[steps], "merges": [" ".join(pair) for pair in merges]}


def _unigram(stored: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": "t5",
        "pre": "default",
        "scores": dict(stored["model"]["vocab"]),
        "add_space_prefix": _prefixed(stored),
        "remove_extra_whitespaces": False,
    }
    for step in _parts(stored.get("normalizer"), "normalizers"):
        if step["type"] == "Precompiled":
            found["precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
        found["remove_extra_whitespaces"] |= "{2,}" in str(step.get("pattern"))
    return found


def _word_piece(stored: Mapping[str, Any]) -> dict[str, Any]:
    normalizer = stored.get("normalizer") or {}
    lower = bool(normalizer.get("lowercase"))
    strips = normalizer.get("strip_accents")
    if normalizer.get("type") != "BertNormalizer" or not lower or strips is False:
        raise InputError("the tokenizer keeps case or accents; llama.cpp's WordPiece drops both")
    return {"model": "bert", "pre": "default"}


# Kinds of the tokenizers library -> keys after "tokenizer.ggml.".
KINDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "BPE": _bpe,
    "Unigram": _unigram,
    "WordPiece": _word_piece,
}


def _parts(step: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """A step of a tokenizer, or those of a sequence."""
    if step is not None:
        yield from (step[key] if step["type"] == "Sequence" else [step])


def _steps(pre: Mapping[str, Any] | None) -> Iterator[str]:
    """How text is split before BPE."""
    for step in _parts(pre, "pretokenizers"):
        if step["type"] == "Digits":
            yield "digits"
        elif step["type"] == "Split":
            yield next(iter(step["pattern"].values()))
        elif step["type"] == "ByteLevel":
            if step.get("use_regex", True):
                yield GPT2_SPLIT
        else:
            yield step["type"].lower()


def _prefixed(stored: Mapping[str, Any]) -> bool:
    """Whether text gets a blank before it."""
    steps = [
        *_parts(stored.get("normalizer"), "normalizers"),
        *_parts(stored.get("pre_tokenizer"), "pretokenizers"),
    ]
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _tokens(
    stored: Mapping[str, Any], scored: Mapping[str, float] | None, size: int
) -> tuple[list[str], list[int], list[float]]:
    """(texts, types, scores) by number. Raises InputError for more tokens than the table has."""
    model = stored["model"]
    vocab = model["vocab"]
    if not isinstance(vocab, Mapping):  # of unigrams, (text, score) pairs
        vocab = {token: number for number, (token, _) in enumerate(vocab)}
    added = {token["content"]: token for token in stored["added_tokens"]}
    numbers = vocab | {text: token["id"] for text, token in added.items()}
    most = max(numbers.values(), default=-1)
    if most >= size:
        raise InputError(f"the tokenizer has a token {most}, the model's table {size:,} rows")
    unknown = model.get("unk_token", model.get("unk_id"))
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    lowest = min((scored or {}).values(), default=0.0) - 1
    scores = [lowest] * size
    for text, number in numbers.items():
        tokens[number], types[number] = text, NORMAL
        if scored is not None:
            scores[number] = scored.get(text, lowest)
        if len(text) == 6 and text.startswith("<0x") and model.get("byte_fallback"):
            types[number] = BYTE
        if text in added:
            types[number] = CONTROL if added[text]["special"] else USER_DEFINED
        if scored is not None and unknown in (text, number):
            types[number] = UNKNOWN
    return tokens, types, scores if scored is not None else []


def _phantom(token: str, kind: int) -> str:
    """A word of WordPiece begins with a blank there, and its rest with nothing."""
    if kind in (CONTROL, UNUSED):
        return token
    return token.removeprefix("##") if token.startswith("##") else BLANK + token
