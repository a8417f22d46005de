"""Static activations without training: the float model runs over some data, and is observed."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lowbit.conversion.plan import Plan
from lowbit.formats import StaticScale
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import tracked
from lowbit.qat.modules import FakeQuantLinear
from lowbit.qat.prepare import (
    QatOptions,
    fake_quantized,
    put_fake_quantized,
    restore_float,
    static_scales,
)


def calibrate(
    model: nn.Module,
    plan: Plan,
    batches: Sequence[Mapping[str, Tensor]],
    options: QatOptions | None = None,
    progress: bool = True,
) -> dict[str, tuple[StaticScale, ...]]:
    """The scales of each module whose activations are static by `plan`, from model inputs.

    The model is left as it was. Raises as `prepare_qat` does.
    """
    put_fake_quantized(model, plan, options or QatOptions())
    try:
        for module in fake_quantized(model).values():
            module.observing = isinstance(module, FakeQuantLinear)
        with evaluating(model):
            for inputs in tracked(batches, "calibrating", "batch", progress):
                model(**inputs)
        return static_scales(model)
    finally:
        restore_float(model)
