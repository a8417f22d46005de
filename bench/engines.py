"""Other engines for the same encoder, each as a function from token ids to the last hidden state.

They come with `pip install ".[bench]"`.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertModel

Encoder = Callable[[Tensor], Tensor]
CALIBRATION = 4  # batches
EXAMPLE = torch.zeros(2, 128, dtype=torch.long)


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


def torch_compiled(model: BertModel) -> Encoder:
    return of_torch(torch.compile(model.eval()))


def torchao_dynamic(model: BertModel) -> Encoder:
    """torchao's int8, a scale per output channel and per token, compiled as it wants to be."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model.eval(), Int8DynamicActivationInt8WeightConfig())
    return torch_compiled(model)


def torchao_static(model: BertModel) -> Encoder:
    """torchao's static int8 for x86: an exported graph, calibrated with random tokens; Inductor
    makes oneDNN's products of it, its weights being constants."""
    import torch._inductor.config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch._inductor.config.freezing = True
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    batch = {0: torch.export.Dim("batch", max=64)}
    graph = torch.export.export(model.eval(), (EXAMPLE,), dynamic_shapes=(batch,)).module()
    prepared = prepare_pt2e(graph, quantizer)
    for _ in range(CALIBRATION):
        prepared(torch.randint(0, 30_000, EXAMPLE.shape))
    return of_torch(torch.compile(convert_pt2e(prepared)))


class _HiddenState(nn.Module):
    """What an exporter can trace: one tensor in, one out."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden


def onnx_runtime_int8(model: BertModel, folder: Path, threads: int) -> Encoder:
    """quantize_dynamic, a scale per output channel. What is exported stays in `folder`."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, small = folder / "float.onnx", folder / "int8.onnx"
    if not small.exists():
        any_shape = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
        torch.onnx.export(
            _HiddenState(model).eval(), (EXAMPLE,), plain, dynamic_shapes=any_shape, verbose=False
        )
        quantize_dynamic(plain, small, per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda ids: torch.from_numpy(session.run(None, {name: ids.numpy()})[0])


def openvino(
    model: BertModel, folder: Path, threads: int, static_int8: bool, any_shape: bool = False
) -> Encoder:
    """float32, or static int8 by NNCF with SmoothQuant, from random tokens, and the rest float32.
    It is compiled for each shape by itself, or once for all. What is converted stays in
    `folder`."""
    import openvino as ov

    file = folder / ("int8.xml" if static_int8 else "float.xml")
    if not file.exists():
        converted = ov.convert_model(_HiddenState(model).eval(), example_input=EXAMPLE)
        if static_int8:
            import nncf

            nncf.set_log_level(logging.ERROR)
            random = np.random.default_rng(0)
            batches = [random.integers(0, 30_000, EXAMPLE.shape) for _ in range(CALIBRATION)]
            converted = nncf.quantize(
                converted,
                nncf.Dataset(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=CALIBRATION,
            )
        ov.save_model(converted, file, compress_to_fp16=False)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }

    @cache
    def compiled(shape: tuple[int, ...]) -> Callable[[np.ndarray], Mapping[int, np.ndarray]]:
        read = ov.Core().read_model(file)
        read.reshape(list(shape))
        return ov.Core().compile_model(read, "CPU", options)

    def shape(ids: Tensor) -> tuple[int, ...]:
        return (-1, -1) if any_shape else tuple(ids.shape)

    return lambda ids: torch.from_numpy(compiled(shape(ids))(ids.numpy())[0])
