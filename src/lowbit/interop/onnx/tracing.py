"""A graph of a model, traced by transformers' exporter, as an ONNX model."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.interop.onnx.graphs import Graph, input_name, output_name
from lowbit.progress import without_load_reports


def trace(graph: Graph, opset: int) -> Any:
    """An onnx_ir.Model with names for inputs, outputs and their axes."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    with _quietly():
        shapes = _shapes(graph)
        config = OnnxConfig(dynamic_shapes=shapes, opset_version=opset)
        program = OnnxExporter().export(graph.model, dict(graph.inputs), config).program
    for value in program.graph.inputs:
        value.name = input_name(value.name)
    for value in program.graph.outputs:
        value.name = output_name(value.name)
    return _with_axes(program, graph)


def _shapes(graph: Graph) -> dict[str, Any]:
    """`graph.axes` as torch.export has it: a tree like that of the inputs."""
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

    register_cache_pytrees_for_model(graph.model)
    axes = iter(graph.axes)

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return dict.fromkeys(next(axes), torch.export.Dim.DYNAMIC)
        children, _ = torch.utils._pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)
        return [of(child) for child in children]

    return {n: of(value) for n, value in graph.inputs.items() if not isinstance(value, bool)}


def _with_axes(program: Any, graph: Graph) -> Any:
    """Axes are called what `graph.axes` calls them, everywhere."""
    names: dict[str, str] = {}
    for value, axes in zip(program.graph.inputs, graph.axes, strict=True):
        for axis, name in axes.items():
            size = value.shape[axis]
            if isinstance(size, int):
                raise InputError(f"{name} of {value.name} can only be {size} in an ONNX model of it")
            names[size.value] = name
    import onnx_ir

    for node in program.graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.shape is not None:
                value.shape = onnx_ir.Shape([names.get(getattr(d, "value", d), d) for d in value.shape])
    return program


@contextmanager
def _quietly() -> Iterator[None]:
    """What torch and transformers say of their own versions and steps is left out."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), without_load_reports():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
