"""python -m tests.interop.real_tools TOOL MODEL OUT: the tool itself quantizes the folder MODEL.

For each kind a folder OUT/KIND as the tool writes it, and OUT/KIND.npz with the float32 weights
that its own code decodes. In a process of its own, for such packages change others when imported.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def float_model(source):
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def autoround(source, out):
    """AutoRound writes GPTQ's and AWQ's formats; its layers decode them."""
    from auto_round import AutoRound
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    def gptq(bits, tensors):
        words, rows = tensors["qweight"].shape
        columns = words * 32 // bits
        layer = QuantLinear(bits, 32, columns, rows, bias=False)
        layer.qweight, layer.qzeros = tensors["qweight"], tensors["qzeros"]
        layer.scales = tensors["scales"].float()
        with torch.no_grad():
            return layer(torch.eye(columns)).t()

    def awq(bits, tensors):
        own = tensors["qweight"], tensors["qzeros"], tensors["scales"].float()
        return dequantize_gemm(*own, bits, 32).t()

    kinds = {
        "gptq-4": (4, False, "auto_gptq", gptq),
        "gptq-4-symmetric": (4, True, "auto_gptq", gptq),
        "gptq-3-symmetric": (3, True, "auto_gptq", gptq),
        "gptq-2": (2, False, "auto_gptq", gptq),
        "autoround-4-symmetric": (4, True, "auto_round", gptq),
        "awq-4": (4, False, "auto_awq", awq),
    }
    for kind, (bits, symmetric, format, decode) in kinds.items():
        tokenizer = AutoTokenizer.from_pretrained(source)
        options = dict(bits=bits, group_size=32, sym=symmetric, iters=0, disable_opt_rtn=True)
        tool = AutoRound(float_model(source), tokenizer, **options)
        tool.quantize_and_save(str(out / "made"), format=format)
        (made,) = (out / "made").iterdir()  # a folder that is named after the bits
        made.rename(out / kind)
        tensors = load_file(out / kind / "model.safetensors")
        modules = {n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")}
        yield (
            kind,
            {
                m: decode(bits, {n: tensors[f"{m}.{n}"] for n in ("qweight", "qzeros", "scales")})
                for m in modules
            },
        )


def torchao(source, out):
    """save_pretrained with torchao's classes of tensors, which decode themselves."""
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    kinds = {
        "int8": Int8WeightOnlyConfig(),
        "int8-dynamic": Int8DynamicActivationInt8WeightConfig(),
        "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
    }
    for kind, config in kinds.items():
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, quantization_config=TorchAoConfig(config)
        )
        model.save_pretrained(out / kind)
        layers = {n: m.weight for n, m in model.named_modules() if n.endswith("_proj")}
        yield kind, {name: weight.dequantize() for name, weight in layers.items()}


def bitsandbytes(source, out):
    """4 bits on a CPU, decoded by its own function."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import BitsAndBytesConfig

    for kind, nested in (("nf4", False), ("nf4-nested", True), ("fp4", False)):
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind[:3],
            bnb_4bit_use_double_quant=nested,
            bnb_4bit_compute_dtype=torch.float32,
        )
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )
        model.save_pretrained(out / kind)
        layers = {n: m.weight for n, m in model.named_modules() if n.endswith("_proj")}
        yield (
            kind,
            {n: dequantize_4bit(w.data, quant_state=w.quant_state) for n, w in layers.items()},
        )


TOOLS = {"auto_round": autoround, "torchao": torchao, "bitsandbytes": bitsandbytes}

if __name__ == "__main__":
    tool, source, out = sys.argv[1:]
    for kind, weights in TOOLS[tool](source, Path(out)):
        arrays = {name: weight.detach().float().numpy() for name, weight in weights.items()}
        np.savez(Path(out) / f"{kind}.npz", **arrays)
