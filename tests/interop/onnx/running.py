"""Folders of ONNX models are run by the programs that read them."""

import numpy as np
import pytest


def onnx_runtime(file):
    """(feed) -> outputs by name, in ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime", reason='pip install ".[onnx]"')
    runtime.set_default_logger_severity(3)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(feed):
        return dict(zip(outputs, session.run(None, {n: feed[n] for n in names}), strict=True))

    return run


def openvino(file):
    """The same in OpenVINO, in float32."""
    ov = pytest.importorskip("openvino", reason="pip install openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = ov.Core().compile_model(file, "CPU", options)
    names = [value.any_name for value in compiled.inputs]

    def run(feed):
        found = compiled({n: feed[n] for n in names})
        # An output can have names of what computes it beside its own.
        return {name: found[output] for output in compiled.outputs for name in output.get_names()}

    return run


def relative_error(found, expected):
    """Of two arrays; NaN where either has one."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
