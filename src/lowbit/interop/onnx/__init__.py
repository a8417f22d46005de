"""ONNX: export only, for ONNX Runtime, OpenVINO and other programs.

blocks.py     a quantized tensor -> the layout of ONNX's operators
layers.py     modules that hold it and call them
graphs.py     the graphs to trace, with the names of inputs and outputs
tracing.py    a graph -> an ONNX model
outgoing.py   a lowbit folder -> a folder of ONNX models
"""

from lowbit.interop.door import Writer
from lowbit.interop.onnx.outgoing import check, check_sentences, write, write_sentences

WRITER = Writer(
    check,
    write,
    weights="**/*.onnx*",
    layouts={
        "sentence-transformers": Writer(check_sentences, write_sentences, weights="**/*.onnx*")
    },
)
