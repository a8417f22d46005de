"""Other engines for the same encoder, each as a function from token ids to the last hidden state.

They come with `pip install ".[bench]"`.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertModel

Encoder = Callable[[Tensor], Tensor]
CALIBRATION_BATCHES = 8


def of_torch(model: nn.Module) -> Encoder:
    return lambda ids: model(ids).last_hidden_state


def torch_bfloat16(model: BertModel) -> Encoder:
    half = model.bfloat16()
    return lambda ids: half(ids).last_hidden_state.float()


def torch_dynamic(model: BertModel) -> Encoder:
    """PyTorch's own int8 with dynamic activation scales."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still the one to beat
        return of_torch(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}))


class _HiddenState(nn.Module):
    """What an exporter can trace: one tensor in, one out."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden


def onnx_runtime_int8(model: BertModel, example: Tensor, folder: Path, threads: int) -> Encoder:
    """quantize_dynamic, a scale per output channel."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, small = folder / f"float-{len(example)}.onnx", folder / f"int8-{len(example)}.onnx"
    torch.onnx.export(_HiddenState(model).eval(), (example,), plain, verbose=False)
    quantize_dynamic(plain, small, per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda ids: torch.from_numpy(session.run(None, {name: ids.numpy()})[0])


def openvino(
    model: BertModel, example: Tensor, threads: int, precision: str, static_int8: bool
) -> Encoder:
    """`precision` of what is not int8; static int8 by NNCF with SmoothQuant, from random tokens."""
    import openvino as ov

    converted = ov.convert_model(_HiddenState(model).eval(), example_input=example)
    converted.reshape(list(example.shape))
    if static_int8:
        import nncf

        nncf.set_log_level(logging.ERROR)
        random = np.random.default_rng(0)
        batches = [random.integers(0, 30_000, example.shape) for _ in range(CALIBRATION_BATCHES)]
        converted = nncf.quantize(
            converted,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=CALIBRATION_BATCHES,
        )
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = ov.Core().compile_model(converted, "CPU", options)
    return lambda ids: torch.from_numpy(compiled(ids.numpy())[0])
