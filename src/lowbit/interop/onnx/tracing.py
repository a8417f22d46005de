"""Trace a graph of a model with transformers' exporter, as an ONNX model."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves

from lowbit.interop.onnx.graphs import Graph, axes_of, input_name, output_name
from lowbit.progress import without_load_reports


def trace(graph: Graph, opset: int) -> Any:
    """An onnx_ir.Model with names for inputs, outputs and their axes."""
    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

    with _quietly():
        register_cache_pytrees_for_model(graph.model)
        tensors = {n: value for n, value in graph.inputs.items() if not isinstance(value, bool)}
        shapes = {name: _shapes(value) for name, value in tensors.items()}
        axes = [axes_of(leaf) for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
        config = OnnxConfig(dynamic_shapes=shapes, opset_version=opset)
        program = OnnxExporter().export(graph.model, dict(graph.inputs), config).program
    _name_axes(program.graph, axes)
    for value in program.graph.inputs:
        value.name = input_name(value.name, graph)
    for value in program.graph.outputs:
        value.name = output_name(value.name)
    _leave_out(program.graph, graph)
    return program


def _shapes(value: Any) -> Any:
    """`axes_of` every tensor, in the structure of the inputs, for torch.export."""
    if isinstance(value, Tensor):
        return dict.fromkeys(axes_of(value), torch.export.Dim.DYNAMIC)
    if value is None:
        return None
    children, _ = SUPPORTED_NODES[type(value)].flatten_fn(value)
    return [_shapes(child) for child in children]


def _name_axes(graph: Any, axes: list[dict[int, str]]) -> None:
    """Use the names of the inputs' axes for all sizes. Remove the tracer's metadata of nodes, which
    is a third of the file of a small model."""
    names: dict[str, str] = {}
    for value, own in zip(graph.inputs, axes, strict=True):
        names |= {str(value.shape[axis]): name for axis, name in own.items()}
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    values = list(graph.inputs)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        values += node.outputs
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            told = None if isinstance(size, int) else size.value
            if told is not None:
                value.shape[axis] = symbol.sub(lambda found: names[found[0]], told)


def _leave_out(graph: Any, described: Graph) -> None:
    """Remove inputs that nothing reads, and outputs that are inputs."""
    if described.constant is not None:
        kept = [value for value in graph.outputs if described.constant not in value.name]
        graph.outputs[:] = kept
        for node in reversed(list(graph)):
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]


@contextmanager
def _quietly() -> Iterator[None]:
    """A context without messages of torch and transformers about versions and steps."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), without_load_reports():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
