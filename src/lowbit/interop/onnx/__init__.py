"""ONNX: out only, for ONNX Runtime, OpenVINO and whatever else reads it.

blocks.py     a quantized tensor -> the layout of ONNX's operators
layers.py     modules that hold it and call them
graphs.py     what is traced: one graph or several, with the names of inputs and outputs
tracing.py    a graph -> an ONNX model
outgoing.py   a folder of lowbit's -> a folder of ONNX models
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
