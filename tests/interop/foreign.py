"""Folders of other quantizers, written with NumPy after the layouts that they publish.

Each returns what every weight stands for, in float32: scale · (code − zero point), one product a
weight, as the programs themselves compute it.
"""

import json
import re
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from tests.folders import byte_tokenizer
from tests.models import make

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs of an AWQ word, from the lowest nibble on


@dataclass(frozen=True)
class Codes:
    """Codes [out, in] and zero points [out, groups] from 0 on, scales [out, groups] in float16."""

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    groups: np.ndarray  # of each input

    @property
    def weight(self):
        scale = self.scale.astype(np.float32)[:, self.groups]
        return scale * (self.q.astype(np.float32) - self.zero.astype(np.float32)[:, self.groups])


def quantized(weight, bits, size, symmetric, order=None):
    """Nearest codes; `order`: inputs in the order in which groups are filled."""
    rows, columns = weight.shape
    size = columns if size < 0 else size
    groups = np.arange(columns) // size
    if order is not None:
        groups = groups[np.argsort(order)]
    count, top = groups.max() + 1, (1 << bits) - 1
    low, high = np.zeros((rows, count)), np.zeros((rows, count))
    for g in range(count):
        low[:, g] = np.minimum(weight[:, groups == g].min(1), 0)
        high[:, g] = np.maximum(weight[:, groups == g].max(1), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = ((high - low) / top).astype(np.float16)
    middle = np.full(scale.shape, (top + 1) // 2)
    # Version 1 of GPTQ cannot say the zero point 0.
    zero = middle if symmetric else np.clip(np.rint(-low / scale), 1, top).astype(np.int64)
    q = np.clip(np.rint(weight / scale[:, groups]) + zero[:, groups], 0, top).astype(np.int64)
    return Codes(q, scale, zero, groups)


def words_down(codes, bits):
    """int32 [n·bits/32, m]: codes [n, m] of each column as one string of bits, the lowest first."""
    places = (codes[:, None, :] >> np.arange(bits)[None, :, None] & 1).astype(np.uint8)
    strings = np.packbits(places.reshape(-1, codes.shape[1]), axis=0, bitorder="little")
    return np.ascontiguousarray(strings.T).view("<i4").T.copy()


def gptq_tensors(codes, bits, version):
    return {
        "qweight": words_down(codes.q.T, bits),
        "qzeros": np.ascontiguousarray(words_down(codes.zero - (version == 1), bits).T),
        "scales": np.ascontiguousarray(codes.scale.T),
        "g_idx": codes.groups.astype(np.int32),
    }


def awq_words(codes):
    """int32 [n, m/8] of codes [n, m]."""
    eight = codes.reshape(len(codes), -1, 8).astype(np.uint32)
    return sum(eight[..., own] << 4 * i for i, own in enumerate(ORDER)).astype("<u4").view("<i4")


def awq_tensors(codes):
    return {
        "qweight": awq_words(codes.q.T),
        "qzeros": awq_words(codes.zero.T),
        "scales": np.ascontiguousarray(codes.scale.T),
    }


def write(folder, quantization, tensors_of, model=None, beside=None):
    """The model, by default the tiny Llama, with its projections and experts as
    `tensors_of(weight)` gives them beside their Codes. quantization: put into config.json, or into
    the file `beside`."""
    folder.mkdir(parents=True)
    model = (model or make("llama-untied")).half()
    stored, weights = {}, {}
    # Of experts one by one, as checkpoints hold them.
    for key, tensor in revert_weight_conversion(model, model.state_dict()).items():
        module, _, own = key.rpartition(".")
        if not re.search(r"_proj\.|\.experts\.", key) or own != "weight":
            stored[key] = tensor.contiguous()
            continue
        codes, tensors = tensors_of(tensor.float().numpy())
        weights[module] = codes.weight
        stored |= {f"{module}.{n}": torch.from_numpy(t.copy()) for n, t in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string())
    config |= {"dtype": "float16", "architectures": [type(model).__name__]}
    if beside is None:
        config["quantization_config"] = quantization
    else:
        (folder / beside).write_text(json.dumps(quantization))
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return weights


def gptq(folder, bits=4, size=32, symmetric=False, version=1, order=None, **options):
    def tensors_of(weight):
        codes = quantized(weight, bits, size, symmetric, order and order(weight.shape[1]))
        return codes, gptq_tensors(codes, bits, version)

    said = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "sym": symmetric,
        "desc_act": order is not None,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "meta": {"quantizer": ["numpy:1.0"]},
    }
    return write(folder, said, tensors_of, **options)


def awq(folder, size=32, **options):
    def tensors_of(weight):
        codes = quantized(weight, 4, size, symmetric=False)
        return codes, awq_tensors(codes)

    said = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    return write(folder, said | {"version": "gemm"}, tensors_of, **options)
