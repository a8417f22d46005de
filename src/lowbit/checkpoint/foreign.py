"""Models that other programs quantized: what each is, told from its config or from its tensors.

lowbit runs float models and those that it wrote. A folder of another quantizer is refused in one
sentence that says whose it is, whatever was to be done with it, but to import it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowbit.errors import InputError

METHOD = "lowbit"
# quant_method of config.json -> who writes it.
LIBRARIES = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AutoAWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "llm-compressor",
    "eetq": "EETQ",
    "fbgemm_fp8": "FBGEMM",
    "finegrained_fp8": "DeepSeek's fp8",
    "fp8": "fp8",
    "gptq": "GPTQModel or AutoGPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "mxfp4",
    "quanto": "optimum-quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
# How the name of a tensor ends that nobody else writes -> who does.
TENSORS = {
    ".qzeros": "GPTQModel or AutoAWQ",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "llm-compressor",
    ".weight_scale_inv": "fp8",
    ".W_q": "HQQ",
    ".weight._data": "optimum-quanto",
    ":_data": "torchao",
}
# A file beside the weights, or in their place -> who writes it. Endings start with a dot.
FILES = {
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
    "quanto_qmap.json": "optimum-quanto",
    "openvino_model.xml": "OpenVINO",
    ".gguf": "llama.cpp (GGUF)",
    ".onnx": "ONNX",
    ".mlmodelc": "Core ML",
    ".tflite": "TensorFlow Lite",
}
# A file of a folder that is no model of transformers -> what the folder is, and what to do.
OTHER_FOLDERS = {
    "adapter_config.json": "it holds an adapter of PEFT; merge it into its base model"
    " (PeftModel.merge_and_unload, save_pretrained), then quantize the merged model",
    "model_index.json": "it is a pipeline of diffusers; lowbit.quantize(pipeline.transformer,"
    " recipe) quantizes its transformer in memory",
    "modules.json": "it is a model of sentence-transformers; give the folder of its first module",
}
# Those whose codes `lowbit import` takes over (interop/doors.py), by quant_method and by file.
IMPORTED = ("auto-round", "awq", "bitsandbytes", "compressed-tensors", "gptq", "torchao")
IMPORTED_FILES = ("quantize_config.json", "quant_config.json", ".gguf")
IMPORT = "take it over with `lowbit import`, or quantize the float model that it was made from"
# Those that transformers makes floats of while it loads them, on a CPU too.
DEQUANTIZED = ("mxfp4",)
DEQUANTIZE = (
    "transformers loads it as a float model: lowbit.quantize(AutoModelForCausalLM.from_pretrained("
    "folder), recipe) quantizes that, in the memory that the float model takes"
)
ADVICE = (
    "lowbit reads float models in safetensors and models that it quantized itself: quantize the"
    " float model that this one was made from"
)


def check_config(folder: Path, stored: Mapping[str, Any]) -> None:
    """Raises InputError where config.json says that another program quantized the model."""
    quantization = stored.get("quantization_config") or {}
    if stored.get("quantization") and not quantization:
        _refuse(folder, "MLX")
    if not quantization:
        return
    method = quantization.get("quant_method")
    if method is None and (quantization.get("load_in_4bit") or quantization.get("load_in_8bit")):
        method = "bitsandbytes"
    if method != METHOD:
        library = LIBRARIES.get(str(method))
        known = dict.fromkeys(IMPORTED, IMPORT) | dict.fromkeys(DEQUANTIZED, DEQUANTIZE)
        advice = known.get(str(method), ADVICE)
        _refuse(folder, str(method) + (f", by {library}" if library else ""), advice)


def check_tensors(folder: Path, names: Iterable[str]) -> None:
    """Raises InputError for the first name that only another quantizer writes."""
    endings = tuple(TENSORS)
    for name in names:
        if name.endswith(endings):
            library = next(who for ending, who in TENSORS.items() if name.endswith(ending))
            _refuse(folder, f"by {library}: it holds {name}")


def hint(folder: Path) -> str:
    """What a folder without config.json is instead, and what to do with it; empty if unknown."""
    found = (told for file, told in OTHER_FOLDERS.items() if (folder / file).is_file())
    return next((f": {told}" for told in found), "")


def written_by(folder: Path) -> str | None:
    """Which other program wrote the files of a folder without safetensors, and what to do."""
    for file in sorted(folder.iterdir()):
        library = FILES.get(file.name) or FILES.get(file.suffix)
        if library is not None:
            advice = IMPORT if {file.name, file.suffix} & set(IMPORTED_FILES) else ADVICE
            return f"{file.name} is a file of {library}; {advice}"
    return None


def _refuse(folder: Path, told: str, advice: str = ADVICE) -> None:
    raise InputError(f"{folder} is already quantized ({told}); {advice}")
