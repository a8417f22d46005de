"""The table of doors: formats of other projects, by the name that `--to` takes."""

from lowbit.interop import awq, compressed_tensors, gguf, gptq
from lowbit.interop.door import Door

DOORS: dict[str, Door] = {
    "gguf": Door(gguf.READER, gguf.WRITER),
    "gptq": Door(gptq.READER),
    "awq": Door(awq.READER),
    "compressed-tensors": Door(compressed_tensors.READER),
}
