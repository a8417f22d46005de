"""The table of formats of other projects, by the names of `--to`."""

from lowbit.interop import (
    awq,
    bitsandbytes,
    compressed_tensors,
    compressed_tensors_out,
    gguf,
    gptq,
    onnx,
    torchao,
)
from lowbit.interop.door import Door

DOORS: dict[str, Door] = {
    "gguf": Door(gguf.READER, gguf.WRITER),
    "gptq": Door(gptq.READER),
    "awq": Door(awq.READER),
    "compressed-tensors": Door(compressed_tensors.READER, compressed_tensors_out.WRITER),
    "onnx": Door(writer=onnx.WRITER),
    "torchao": Door(torchao.READER),
    "bitsandbytes": Door(bitsandbytes.READER),
}
