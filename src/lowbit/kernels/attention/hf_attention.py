"""lowbit's attention, registered with transformers under two names.

    model.set_attn_implementation("lowbit")
    model.set_attn_implementation("lowbit_float32")

One call computes scores, softmax and values in float32 (csrc/attention.h). Queries, keys, values,
masks and the result may be float32 or bfloat16; float16 is converted. If the processor has AMX
tiles, "lowbit" rounds the operands of many queries to bfloat16. Sums stay float32, and the error of
one attention is 0.3 % (relative Frobenius error on normal operands). transformers' own code handles
masks, caches and cross-attention.

lowbit computes the same as "sdpa", and soft caps and sinks (in float32). If a module has more
options than "sdpa", or transformers refuses "sdpa" for its model, the first call compares lowbit
with the module's eager function on small operands. If the results agree, lowbit serves the module.
Else the eager function does, with the mask that it expects, and `lowbit.explain` says so. Other
unserved calls, such as training, go to transformers' "sdpa" or to the eager function.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import (
    create_position_bias_mask,
    sdpa_attention_forward,
)
from transformers.masking_utils import eager_mask, sdpa_mask

from lowbit import fallbacks
from lowbit.kernels import native, ops
from lowbit.kernels.attention.native import MASKS
from lowbit.kernels.selection import Kernel, never, select

# The least number of queries for tiles. Fewer are faster in float32, because every call fills
# tiles.
MANY_QUERIES = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The options that "sdpa" reads, and those that lowbit also reads: a soft cap, and sinks. If an
# option is not among them, the model's eager function must not read it.
OPTIONS = ("scaling", "is_causal", "position_bias")
MORE = ("softcap", "s_aux")
EAGER = "eager_attention_forward"


def unsupported(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    options: dict[str, Any] | None = None,
) -> str | None:
    """Why lowbit does not serve a call, or None. query: [batch, heads, queries, size]; key, value:
    [batch, key heads, keys, size]; mask: [batch, heads, queries, keys] or broadcastable.
    """
    options = options or {}
    operands = {"query": query, "key": key, "value": value}
    for name, t in operands.items():
        if t.dim() != 4:
            return f"the {name} {list(t.shape)} is not [batch, heads, tokens, size]"
        if not t.is_cpu:
            return f"the {name} is on {t.device}, not on the CPU"
        if t.dtype not in DTYPES:
            return f"the {name} is {t.dtype}, not float32, bfloat16 or float16"
        if t.numel() == 0:
            return f"the {name} {list(t.shape)} is empty"
    if not _fit(query, key, value):
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in operands.items())
        return f"{shapes} are not those of one attention"
    known = (*MASKS, *DTYPES)
    if mask is not None and (mask.dtype not in known or mask.dim() != 4 or not mask.is_cpu):
        return f"a mask {list(mask.shape)} of {mask.dtype} on {mask.device} is not supported"
    if dropout:
        return f"dropout {dropout} belongs to training"
    cap, sinks = (options.get(name) for name in MORE)
    if cap is not None and not cap > 0:
        return f"a soft cap of {cap} is not above 0"
    if sinks is not None and (list(sinks.shape) != [query.shape[1]] or not sinks.is_cpu):
        return f"sinks {list(sinks.shape)} on {sinks.device} are not one for each head"
    if options.get("cache") is not None:  # only transformers' own code handles or refuses it
        return "cache is requested"
    tracked = *operands.values(), mask, options.get("position_bias"), sinks
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tracked):
        return "gradients are requested"
    return None


def _fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    (batch, heads, _, size), (key_batch, key_heads, _, key_size) = query.shape, key.shape
    same = batch == key_batch and size == key_size and key.shape[:3] == value.shape[:3]
    return same and heads % key_heads == 0


def _unsupported_on_tiles(query: Tensor, *call: Any) -> str | None:
    if query.shape[2] < MANY_QUERIES:
        return f"{query.shape[2]} queries are fewer than {MANY_QUERIES}"
    options = call[-1] if len(call) == 5 else None
    for name in MORE:
        if options and options.get(name) is not None:
            return f"{name} is requested, which is computed in float32"
    return unsupported(query, *call)


def _unsupported_in_scalar_code(query: Tensor, *call: Any) -> str | None:
    if query.shape[2] >= MANY_QUERIES:
        return f"{query.shape[2]} queries are not fewer than {MANY_QUERIES}: torch is faster"
    return unsupported(query, *call)


def _of_transformers(module: nn.Module, *call: Any) -> tuple[Tensor, None]:
    *operands, options = call
    return sdpa_attention_forward(module, *operands, **options)


def _own(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    options: dict[str, Any],
    *,
    target: str,
    tiles: bool = False,
) -> tuple[Tensor, None]:
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    causal = causal and mask is None and query.shape[2] > 1
    bias = options.get("position_bias")
    if bias is not None:
        mask, causal = create_position_bias_mask(bias, mask, causal, query, key), False
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    cap, sinks = (options.get(name) for name in MORE)
    sinks = None if sinks is None else sinks.float()
    same = query.dtype is key.dtype is value.dtype
    operands: tuple[Tensor, ...] = query, key, value
    if tiles or not same or query.dtype not in MASKS:
        operands = tuple(t.float() for t in operands)
        mask = mask if mask is None or mask.dtype is torch.bool else mask.float()
    elif mask is not None and mask.dtype not in MASKS:
        mask = mask.float()
    return ops.attention(*operands, mask, scale, causal, target, cap, sinks).to(query.dtype), None


_REFERENCE = Kernel("reference", _of_transformers, never)
_FLOAT32 = (
    *(
        Kernel(
            target.name,
            partial(_own, target=target.name),
            _unsupported_in_scalar_code if target.feature == native.BASE else unsupported,
            target.feature,
        )
        for target in native.targets("attention_float32")
    ),
    _REFERENCE,
)
_TILES = tuple(
    Kernel(
        target.name,
        partial(_own, target=target.name, tiles=True),
        _unsupported_on_tiles,
        target.feature,
    )
    for target in native.targets("attention_bfloat16")
)
# The kernels by name; each takes the arguments of `unsupported`.
KERNELS: dict[str, tuple[Kernel, ...]] = {
    "lowbit": (*_TILES, *_FLOAT32),
    "lowbit_float32": _FLOAT32,
}


@cache
def _eager(kind: Any) -> Callable[..., Any] | None:
    """The function that transformers calls for "eager" in modules of this class, or None."""
    forward = inspect.unwrap(kind.forward)
    known: dict[str, Any] = getattr(forward, "__globals__", {})
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    used = [name for name in names if name.endswith(EAGER) and name in known]
    found: Callable[..., Any] | None = known.get(used[0] if used else EAGER)
    return found


@cache
def _read_by(eager: Callable[..., Any]) -> frozenset[str]:
    """Names of the options that an eager function reads: its parameters, and its strings, as in
    kwargs.get("softcap")."""
    code = inspect.unwrap(eager).__code__
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return frozenset((*parameters, *(c for c in code.co_consts if isinstance(c, str))))


def _models(file: str) -> list[type[PreTrainedModel]]:
    """The models that a Python module defines."""
    return [
        kind
        for kind in vars(sys.modules.get(file, object)).values()
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.__module__ == file
    ]


@cache
def _supports_sdpa(file: str) -> bool:
    """Whether transformers accepts "sdpa" for the models that a Python module defines."""
    models = _models(file)
    return bool(models) and all(kind._supports_sdpa for kind in models)


@cache
def _file(kind: Any) -> str:
    """The Python module with the models of an attention: a class of one's own belongs to the models
    of the class that it derives from."""
    files = (base.__module__ for base in kind.__mro__)
    return next((file for file in files if _models(file)), kind.__module__)


def _beyond(module: nn.Module, options: dict[str, Any]) -> str | None:
    """Why lowbit cannot compute this module's attention, or None. An option is served if lowbit
    reads it, or if the module's eager function does not."""
    kind: Any = type(module)
    eager = _eager(kind)
    read = frozenset[str]() if eager is None else _read_by(eager)
    for name, given in options.items():
        if given is not None and name not in (*OPTIONS, *MORE) and name in read:
            return f"{name} is requested"
    asked = eager is not None and options.get("output_attentions")
    return "attention weights are requested" if asked else None


def _refuses_sdpa(module: nn.Module) -> bool:
    """Whether the module has an eager function, and transformers does not support "sdpa" for it."""
    kind: Any = type(module)
    return _eager(kind) is not None and not _supports_sdpa(_file(kind))


def _more_than_sdpa(module: nn.Module, options: dict[str, Any]) -> str | None:
    """Why this module's attention differs from "sdpa", or None."""
    if _refuses_sdpa(module):
        return 'transformers does not support "sdpa" for it'
    kind: Any = type(module)
    if _eager(kind) is None:
        return None
    return next((f"{n} is requested" for n in MORE if options.get(n) is not None), None)


# Whether lowbit's results equal those of a module's eager function, by the names of options.
_TRIED: WeakKeyDictionary[nn.Module, dict[frozenset[str], bool]] = WeakKeyDictionary()


def _like_eager(module: nn.Module, call: tuple[Any, ...]) -> bool:
    """Whether lowbit's results equal those of the module's eager function; compared at the first
    call."""
    if torch.compiler.is_compiling():  # the comparison would be compiled too
        return False
    names = frozenset(name for name, given in call[-1].items() if given is not None)
    tried = _TRIED.setdefault(module, {})
    if names not in tried:
        tried[names] = _try_eager(module, *call)
    return tried[names]


@torch.no_grad()
def _try_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    options: dict[str, Any],
) -> bool:
    """Compare both on a few tokens, with and without a mask. Large scores make a soft cap
    visible."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = 5, 7

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    q = 4 * normal(query.shape[1], queries, query.shape[3])
    k, v = (normal(t.shape[1], keys, t.shape[3]) for t in (key, value))
    seen = normal(1, queries, keys) < 0.5
    seen[..., 0] = True
    given = {name: options[name] for name in (*OPTIONS, *MORE) if name in options}
    if given.get("position_bias") is not None:
        given["position_bias"] = normal(query.shape[1], queries, keys)
    for allowed in (None, seen):
        call = q, k, v, allowed, 0.0, given
        kernel, _ = select(_FLOAT32, *call)
        try:
            wanted, _ = _by_eager(module, *call)
        except Exception:  # the model's code may need arguments that only the real call has
            return False
        if kernel is _REFERENCE:
            return False
        y, _ = kernel.run(module, *call[:-1], _uncausal(module, given))
        if y.shape != wanted.shape or not (y - wanted).norm() <= 1e-4 * wanted.norm():
            return False
    return True


def _uncausal(module: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """The options without causality, if the mask already has it (see `_mask`)."""
    return options | {"is_causal": False} if _refuses_sdpa(module) else options


def _by_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The model's own eager function, with the additive mask that it expects."""
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", False)
    (queries, keys), lowest = (query.shape[2], key.shape[2]), torch.finfo(query.dtype).min
    kind: Any = type(module)
    # If "sdpa" may be causal without a mask, the mask is None (see `_mask`).
    if mask is None and causal and queries > 1 and _supports_sdpa(_file(kind)):
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(
            ~mask, lowest
        )
    eager = _eager(kind)
    assert eager is not None
    y: tuple[Tensor, Tensor | None] = eager(
        module, query, key, value, mask, dropout=dropout, **options
    )
    return y


def _mask(*args: Any, config: Any = None, **options: Any) -> Tensor | None:
    """The mask of "sdpa" for models that support it, else that of "eager"."""
    # Modules with this option say that they are not causal, even if the mask is: "sdpa" lets them
    # see all keys when the mask is left out for being causal alone.
    if getattr(config, "use_bidirectional_attention", False):
        options["allow_is_causal_skip"] = False
    file = type(config).__module__.replace("configuration_", "modeling_")
    make = sdpa_mask if _supports_sdpa(file) else eager_mask
    mask: Tensor | None = make(*args, config=config, **options)
    return mask


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    *,
    kernels: Sequence[Kernel],
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with transformers' arguments: [batch, heads, tokens, size] -> [batch, tokens,
    heads, size]."""
    call = query, key, value, attention_mask, dropout, options
    kernel, _ = select(kernels, *call)
    more, refused = _more_than_sdpa(module, options), _beyond(module, options)
    if refused is None and more is not None:
        refused = None if kernel is not _REFERENCE and _like_eager(module, call) else more
    if refused is not None:
        if not torch.compiler.is_compiling():
            fallbacks.note(
                module,
                f"The attention of {type(module).__name__} is computed by the model's own eager"
                f" function: {refused}.",
            )
        return _by_eager(module, *call)
    y: tuple[Tensor, Tensor | None] = kernel.run(module, *call[:-1], _uncausal(module, options))
    return y


@contextmanager
def instead_of_sdpa(model: PreTrainedModel, name: str) -> Iterator[None]:
    """A context with the attention `name`, if the model uses transformers' default."""
    if model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def register() -> None:
    """Register both names and their masks with transformers."""
    for name, kernels in KERNELS.items():
        AttentionInterface.register(name, partial(attention, kernels=kernels))
        AttentionMaskInterface.register(name, _mask)
