"""Write captured graphs as JSON, and read them.

A node has a name, an operator and arguments. A constant of the capture, which is not a parameter or
buffer of the model, is written as its numbers. Only operators without side effects are read: those
that programs know, pointwise operators, and those listed here.
"""

import json
import math
import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from transformers.utils import ModelOutput

from lowbit.errors import UsageError
from lowbit.runtime.capture import Call, Captured, Kind, kind, standing_for
from lowbit.runtime.part import above
from lowbit.runtime.row_by_row import pointwise
from lowbit.runtime.steps import HANDLERS

# Names in a file become names in the code that fx makes of a graph, and executes.
NAME = re.compile(r"[\w.]+")
MOST_NUMBERS = 100_000  # the most numbers of a constant
# Operators of torch that graphs may hold, in addition to HANDLERS and pointwise operators.
COMPUTING = """
__and__.Tensor __or__.Tensor adaptive_avg_pool1d.default adaptive_avg_pool2d.default all.dim
amax.default any.dim arange.default arange.start arange.start_step argmax.default argmin.default
avg_pool2d.default bincount.default bmm.default broadcast_to.default
constant_pad_nd.default conv1d.default conv1d.padding conv2d.default conv2d.padding cumsum.default
diff.default einsum.default embedding.default expand_as.default eye.default flatten.using_ints
flip.default full.default full_like.default gather.default group_norm.default index.Tensor
instance_norm.default linear.default logsumexp.default max.default max.dim
max_pool2d.default mean.default meshgrid.indexing min.default movedim.int narrow.default
new_full.default new_ones.default new_zeros.default nonzero.default numpy_T.default one_hot.default
ones.default ones_like.default outer.default pad.default repeat.default repeat_interleave.self_int
roll.default scalar_tensor.default scatter.src select.int sort.default split.Tensor
split_with_sizes.default squeeze.default squeeze.dim stack.default std.correction sum.default
sum.dim_IntList sym_size.int t.default topk.default tril.default triu.default type_as.default
unflatten.int unfold.default unsqueeze.default upsample_bicubic2d.vec upsample_bilinear2d.vec
upsample_nearest2d.vec var.correction where.Scalar where.ScalarOther where.ScalarSelf zeros.default
zeros_like.default
""".split()
# What models return, beside the outputs of transformers.
STRUCTURES = (list, tuple, dict, OrderedDict)
# Names of operators of HANDLERS begin with one of these.
OPERATORS = ("aten.", "lowbit.", "lowbit_runtime.")
# Python operators that compute sizes.
PLAIN = {
    "add": operator.add,
    "eq": operator.eq,
    "floordiv": operator.floordiv,
    "ge": operator.ge,
    "getitem": operator.getitem,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "max": torch.sym_max,
    "min": torch.sym_min,
    "mod": operator.mod,
    "mul": operator.mul,
    "ne": operator.ne,
    "neg": operator.neg,
    "sub": operator.sub,
}
# Kinds of constants: the name, how to write them, and how to read them.
NAMED: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def _known() -> dict[str, Callable[..., Any]]:
    known: dict[str, Any] = {f"python.{name}": f for name, f in PLAIN.items()}
    for name in COMPUTING:
        packet, overload = name.split(".")
        known[f"aten.{name}"] = getattr(getattr(torch.ops.aten, packet), overload)
    for target in HANDLERS:
        if str(target).startswith(OPERATORS):
            known[str(target)] = target
    return known


def _operator(name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in known:
        return known[name]
    space, packet, overload = (*name.split("."), "", "")[:3]
    operators = torch.ops.aten if space == "aten" else None
    found: Any = getattr(getattr(operators, packet, None), overload, None)
    if pointwise(found):
        return cast(Callable[..., Any], found)
    raise ValueError(f"it calls {name}, which programs do not")


def written(captured: Captured) -> dict[str, Any]:
    """A graph as JSON values. Raises UsageError if `read` could not read them."""
    known = _known()
    names = {target: name for name, target in known.items()}
    held = dict(captured.owner.named_parameters()) | dict(captured.owner.named_buffers())
    constants: dict[str, Any] = {}
    nodes = []
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    needed = set(above(output.all_input_nodes, set()))
    for node in captured.graph.nodes:
        if node is output or (node not in needed and node.op != "placeholder"):
            continue
        if node.op == "get_attr":
            target = str(node.target)
            said: dict[str, Any] = {"holds": target}
            if target not in held:
                constants[target] = _numbers(operator.attrgetter(target)(captured.module), target)
        elif node.op == "placeholder":
            said = {"argument": node.meta["argument"]}
        else:
            name = names.get(node.target, str(node.target))
            try:
                _operator(name, known)
            except ValueError:
                raise UsageError(
                    f"this program cannot be saved: {name} is not one of the operators that saved"
                    " programs may call"
                ) from None
            arguments = _said([list(node.args), dict(node.kwargs)])
            said = {"calls": name, "with": arguments[0], "by_name": arguments[1]}
        found = kind(node)
        if found is not None:
            said["kind"] = [_name(found.dtype), *found.sizes]
        nodes.append({"name": node.name, **said})
    return {
        "nodes": nodes,
        "output": _said(list(pytree.tree_leaves(output.args))),
        "structure": _written(captured.structure),
        "constants": constants,
    }


def read(stored: Mapping[str, Any], model: nn.Module, others: Mapping[str, Any]) -> Captured:
    """Read a graph of `written` for `model`. Raises KeyError, TypeError, AttributeError or
    ValueError if `stored` has another form."""
    _check_names([said["name"] for said in stored["nodes"]])
    _check_names(stored["constants"])
    known, graph, nodes = _known(), fx.Graph(), dict[str, fx.Node]()
    tensors = [said["argument"] for said in stored["nodes"] if "argument" in said]
    owner = Call(model, tuple(tensors), dict(others))
    own = dict(owner.named_parameters()) | dict(owner.named_buffers())
    own |= {name: _tensor(said) for name, said in stored["constants"].items()}
    held: dict[str, Any] = {}
    for said in stored["nodes"]:
        if "holds" in said:
            held[said["holds"]] = own[said["holds"]]
            node = graph.create_node("get_attr", said["holds"], name=said["name"])
        elif "argument" in said:
            node = graph.create_node("placeholder", said["name"], name=said["name"])
            node.meta["argument"] = said["argument"]
        else:
            args, kwargs = _meant([said["with"], said["by_name"]], nodes)
            _check_names(kwargs)
            target = _operator(said["calls"], known)
            node = graph.create_node("call_function", target, tuple(args), kwargs, said["name"])
        if "kind" in said:
            dtype, *sizes = said["kind"]
            node.meta["kind"] = Kind(_named("dtype", dtype), tuple(map(str, sizes)))
        nodes[said["name"]] = node
    graph.output(tuple(_meant(stored["output"], nodes)))
    module = fx.GraphModule(held, graph)
    structure = _structure(stored["structure"])
    if structure.num_leaves != len(stored["output"]):
        raise ValueError(
            f"{structure.num_leaves} results are returned, not {len(stored['output'])}"
        )
    return Captured(module, structure, standing_for(model), owner)


def _check_names(names: Iterable[str]) -> None:
    """Raises ValueError for what would be more than a name in the code of a graph."""
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is not a name")


def _written(structure: pytree.TreeSpec) -> str:
    """A structure as text. Raises UsageError if `_structure` could not read it."""
    try:
        text = pytree.treespec_dumps(structure)
        _structure(text)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"this program cannot be saved: {error}") from error
    return text


def _structure(text: str) -> pytree.TreeSpec:
    """The structure from the text of `_written`. Raises ValueError for any other."""
    _, stored = json.loads(text)
    _check_structure(stored)
    return pytree.treespec_loads(text)


def _check_structure(stored: Mapping[str, Any]) -> None:
    """Raises ValueError for what models do not return: torch would import the modules that some
    kinds of structures name."""
    name, children = stored["type"], stored["children_spec"]
    if name is not None:
        found = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
        if found not in STRUCTURES and not issubclass(found or object, ModelOutput):
            raise ValueError(f"it returns a {name}, which saved programs do not")
        keys = json.loads(stored["context"])
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        keyed = texts and len(keys) == len(children)
        if not keyed and not (keys is None and found in (list, tuple)):
            raise ValueError(f"it returns a {name} whose keys are not a text for each value")
    for child in children:
        _check_structure(child)


def _said(value: Any) -> Any:
    """An argument as JSON values."""
    match value:
        case fx.Node():
            return {"node": value.name}
        case list() | tuple():
            return [_said(each) for each in value]
        case dict():
            return {"mapping": {name: _said(each) for name, each in value.items()}}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case torch.device():
            return {"device": str(value)}
    for name, type_ in NAMED.items():
        if isinstance(value, type_):
            return {name: _name(value)}
    raise UsageError(
        f"this program cannot be saved: it has an argument of type {type(value).__name__}"
    )


def _meant(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The argument from the JSON values of `_said`."""
    if isinstance(value, list):
        return [_meant(each, nodes) for each in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    match name:
        case "node":
            return nodes[inner]
        case "mapping":
            return {key: _meant(each, nodes) for key, each in inner.items()}
        case "float":
            return float(inner)
        case "device":
            return torch.device(inner)
    return _named(name, inner)


def _name(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _named(which: str, name: str) -> Any:
    found = getattr(torch, name)
    if not isinstance(found, NAMED[which]):
        raise ValueError(f"{which} {name} is none")
    return found


def _numbers(tensor: Tensor, name: str) -> dict[str, Any]:
    if tensor.numel() > MOST_NUMBERS:
        raise UsageError(
            f"this program cannot be saved: its constant {name} has {tensor.numel():,} numbers; at"
            f" most {MOST_NUMBERS:,} are"
        )
    numbers = [_said(number) for number in tensor.flatten().tolist()]
    return {"dtype": _name(tensor.dtype), "shape": list(tensor.shape), "numbers": numbers}


def _tensor(said: Mapping[str, Any]) -> Tensor:
    numbers = _meant(said["numbers"], {})
    return torch.tensor(numbers, dtype=_named("dtype", said["dtype"])).view(said["shape"])
