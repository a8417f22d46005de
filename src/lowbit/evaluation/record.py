"""Record a model: its sizes, kernels, plan, and each weight's error and histogram."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.module_weights import WeightName, Weights, matrix, weights_of
from lowbit.conversion.plan import Summary, make_plan
from lowbit.conversion.ties import tied_weights
from lowbit.evaluation.peak import peak_bytes
from lowbit.evaluation.study import Histogram, ModelRecord, ModuleRecord
from lowbit.evaluation.task import Subject
from lowbit.formats.granularity import row_blocks
from lowbit.inspect.checkpoint import Inspection, inspect_model
from lowbit.kernels.ops import dequantize
from lowbit.nn import QuantModule, is_quantized

# Odd, so that zero is in the middle of a bin.
BINS = 101  # of one module
# Bins for all weights: at least four for each of the 255 levels of a tensor at 8 bits.
ALL_BINS = 1021
# A histogram covers all but this share of the float weights.
OUTSIDE = 1e-3


def record(
    subject: Subject,
    folder: Path | None,
    reference: Subject | None = None,
    pictures: bool = True,
    peak: bool = True,
) -> ModelRecord:
    """Record everything about a model that needs no data.

    folder: the folder of the model, for sizes on disk and for the peak memory of a new process.
    reference: its float model, for the plan and the edges of histograms.
    pictures: whether to count histograms of weights. peak: whether to measure peak memory.
    """
    model = subject.model
    config = getattr(model.config, "quantization_config", None)
    recipe = config.recipe if isinstance(config, LowbitConfig) else None
    # Reading the weights unpacks them, so it comes before the first run.
    histograms, weights = (
        _histograms(model, reference.model if reference else model) if pictures else ({}, None)
    )
    seen = inspect_model(model, folder)
    coverage: tuple[Summary, ...] = ()
    if recipe is not None and reference is not None and _is_origin(reference.model, model):
        coverage = tuple(make_plan(reference.model, recipe).summaries())
    return ModelRecord(
        name=subject.name,
        path=None if folder is None else str(folder),
        architecture=type(model).__name__,
        recipe=None if recipe is None else recipe.to_dict(),
        parameters=seen.footprint.parameters,
        bits_per_weight=seen.footprint.bits_per_weight,
        stored_bytes=seen.footprint.stored_bytes,
        disk_bytes=seen.footprint.disk_bytes,
        resident_bytes=seen.footprint.resident_bytes,
        resident_after_forward_bytes=seen.resident_after_forward,
        peak_bytes=peak_bytes(folder) if peak and folder is not None else None,
        kernels=tuple(f"{kernel}: {why}" for kernel, why in sorted(seen.kernels)),
        coverage=coverage,
        modules=_modules(model, seen, histograms),
        slow=seen.slow,
        weights=weights,
    )


def _is_origin(reference: PreTrainedModel, model: PreTrainedModel) -> bool:
    """Whether `reference` is a float model with the structure of `model`."""
    return type(reference) is type(model) and not is_quantized(reference)


def _modules(
    model: PreTrainedModel, seen: Inspection, histograms: Mapping[str, Histogram]
) -> tuple[ModuleRecord, ...]:
    """The records of modules with a matrix; norms and other vectors only count in the totals."""
    records = []
    for row in seen.rows:
        name = row.size.name
        if not _has_matrix(model.get_submodule(name)):
            continue
        error = seen.errors.get(name)
        records.append(
            ModuleRecord(
                name=name,
                stored_as=row.stored_as,
                parameters=row.size.parameters,
                stored_bytes=row.size.stored_bytes,
                kernel=row.kernel,
                why=row.why,
                relative_error=None if error is None else error.relative_error,
                histogram=histograms.get(name),
            )
        )
    return tuple(records)


def _has_matrix(module: nn.Module) -> bool:
    return isinstance(module, QuantModule) or isinstance(weights_of(module), Weights)


def _histograms(
    model: PreTrainedModel, reference: PreTrainedModel
) -> tuple[dict[str, Histogram], Histogram | None]:
    """Histograms by module, and of all weights, with edges from the reference."""
    found, before = {}, []
    for name, weight, mine in _pairs(model, reference):
        edge = _edge(weight)
        found[name] = _count(mine, edge, BINS)
        before.append(found[name] if mine is weight else _count(weight, edge, BINS))
    if not found:
        return {}, None
    edge = _common_edge(before)
    together = [_count(mine, edge, ALL_BINS) for _, _, mine in _pairs(model, reference)]
    counts = tuple(map(sum, zip(*(one.counts for one in together), strict=True)))
    return found, Histogram(edge, counts, sum(one.outside for one in together))


Matrix = Float[Tensor, "out in"]


def _pairs(
    model: PreTrainedModel, reference: PreTrainedModel
) -> Iterator[tuple[str, Matrix, Matrix]]:
    """(module, the reference's matrix, the model's), each decoded."""
    modules, tied = dict(model.named_modules()), tied_weights(reference)
    for name, module in reference.named_modules():
        weight = None if WeightName(name) in tied or name not in modules else _weight(module)
        if weight is None:
            continue
        mine = weight if model is reference else _weight(modules[name])
        if mine is not None:
            yield name, weight, mine


def _common_edge(histograms: Sequence[Histogram]) -> float:
    """The edge that has all but the share OUTSIDE of the histograms' weights inside, to the width
    of a bin."""
    reach, count = [], []
    for one in histograms:
        bins = torch.linspace(-one.edge, one.edge, len(one.counts) + 1, dtype=torch.float64)
        reach.append(torch.maximum(bins[:-1].abs(), bins[1:].abs()))
        count.append(torch.tensor(one.counts))
    order = torch.cat(reach).sort()
    inside = torch.cat(count)[order.indices].cumsum(0)
    enough = torch.searchsorted(inside, math.ceil((1 - OUTSIDE) * int(inside[-1])))
    return order.values[int(enough)].item() if int(inside[-1]) else 1.0


def _weight(module: nn.Module) -> Float[Tensor, "out in"] | None:
    """The decoded matrix of a module, or None if it has none of its own."""
    if isinstance(module, QuantModule):
        return None if module.tied_to is not None else dequantize(module.stored_weight)
    weights = weights_of(module)
    return matrix(module, weights).float() if isinstance(weights, Weights) else None


def _edge(weight: Float[Tensor, "out in"]) -> float:
    """The edge for the finite weights; others of a damaged model count as outside."""
    sizes = weight[weight.isfinite()].abs()
    if not len(sizes):
        return 1.0
    inside = max(1, round((1 - OUTSIDE) * sizes.numel()))
    return sizes.kthvalue(inside).values.item() or 1.0


def _count(weight: Float[Tensor, "out in"], edge: float, bins: int) -> Histogram:
    counts = torch.zeros(bins, dtype=torch.int64)
    for rows in row_blocks(*weight.shape):
        # Counts in float32 are exact up to 2²⁴, and blocks are smaller.
        counts += torch.histc(weight[rows], bins, -edge, edge).long()
    total = int(counts.sum())
    return Histogram(edge, tuple(counts.tolist()), weight.numel() - total)
