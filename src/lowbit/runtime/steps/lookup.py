"""Rows of tables: token, position and type embeddings."""

from typing import Any

import torch
from torch import fx

from lowbit.nn import QuantEmbedding
from lowbit.runtime.capture import ROWS, kind
from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Lookup
from lowbit.runtime.values import UnservedError, Value

aten = torch.ops.aten


def _rows(to: Lowering, node: fx.Node) -> Value:
    ids, name, columns = node.args
    table = to.captured.modules[str(name)]
    assert isinstance(table, QuantEmbedding)
    packed = table.pack()
    if packed is None or len(packed.layout.parts) != 1 or table.embed_scale is not None:
        raise UnservedError(f"{name} is not one native table")
    return _looked_up(to, node, str(name), table, packed, ids)


def _embedding(to: Lowering, node: fx.Node) -> Value:
    args: list[Any] = list(node.args)
    weight, ids = args[:2]
    table = to.tensor(weight)
    assert table is not None
    name = str(weight.target).removeprefix("model.").removesuffix(".weight")
    return _looked_up(to, node, name, table, None, ids)


def _looked_up(to: Lowering, node: fx.Node, name: str, table: Any, packed: Any, ids: Any) -> Value:
    columns = to.fits(node)
    if not isinstance(ids, fx.Node) or ids in to.values or ids in to.late:
        raise UnservedError(f"the ids of {name} depend on what the model computes")
    found = kind(ids)
    if found is None or found.dtype is not torch.int64 or len(found.sizes) != 2:
        raise UnservedError(f"the ids of {name} are not int64 [batch, length]")
    if ids not in to.ids:
        to.ids.append(ids)
    y = to.new(columns)
    to.operations.append(Lookup(name, table, packed, to.ids.index(ids), y.number))
    return y


HANDLERS = {ROWS: _rows, aten.embedding.default: _embedding}
