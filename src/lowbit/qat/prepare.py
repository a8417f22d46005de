"""Quantization-aware training: prepare a float model, train it, and quantize it.

prepare_qat(model, "int8-static")   fake-quantize the modules that the recipe quantizes
train the model with any trainer
finish_qat(model)                   replace the fake-quantized modules by quantized ones
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.calibration.observers import OBSERVERS, Observer
from lowbit.conversion.apply import Result, quantize_with
from lowbit.conversion.module_weights import matrix
from lowbit.conversion.plan import Plan, Quantize, TiedTo, check_no_experts, make_plan
from lowbit.conversion.recipe import Recipe, load_recipe
from lowbit.conversion.swap import hand_over_hooks, replace_module
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import UsageError, check_at_least, check_choice, naming
from lowbit.formats import StaticScale
from lowbit.nn import ACTIVATIONS, STATIC, RequantizedLinear
from lowbit.qat.modules import (
    FakeQuantEmbedding,
    FakeQuantized,
    FakeQuantLinear,
    TokenRange,
)
from lowbit.qat.weights import ESTIMATORS, StraightThrough, WeightQuantizer


@dataclass(frozen=True)
class QatOptions:
    """How to train towards a recipe.

    Attributes:
        estimator: How gradients pass the rounding of weights: "ste" (straight-through; Bengio et
            al. 2013), "clipped", or "lsq" (learned step size; Esser et al. 2020).
        ranges: How ranges of static activations are found: "mse", "ema", "learned", "minmax" or
            "percentile".
        range_options: Options of `ranges`, such as {"decay": 0.999}.
        symmetric: Whether static activations have no zero point. A zero point doubles the number of
            codes for the output of a GELU or ReLU.
        start: The number of forward passes in training that stay float and only observe ranges. If
            several blocks share a layer, as in ALBERT, each block counts as one pass.

    Raises:
        UsageError: if a name or option is unknown or out of range.
    """

    estimator: str = "ste"
    ranges: str = "mse"
    range_options: Mapping[str, float] = field(default_factory=dict)
    symmetric: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        for kind, name, table in (
            ("estimator", self.estimator, ESTIMATORS),
            ("range", self.ranges, OBSERVERS),
        ):
            check_choice(kind, name, table)
        check_at_least("start", self.start, 0)
        self.new_observer()

    def new_observer(self) -> Observer:
        return OBSERVERS[self.ranges](self.symmetric, **self.range_options)


def prepare_qat(
    model: nn.Module,
    recipe: str | Path | Recipe | Mapping[str, Any],
    options: QatOptions | None = None,
    quantizer: WeightQuantizer | None = None,
) -> Plan:
    """Replace the modules that a recipe quantizes by fake-quantized modules, in place.

    A fake-quantized module computes with rounded weights and activations, and lets gradients pass
    (Jacob et al. 2018). Parameters keep their names and identity. Tied weights share one quantizer.

    Args:
        model: A float model.
        recipe: The same as in `lowbit.quantize`, but not None.
        options: How to train. None: `QatOptions()`.
        quantizer: A class that rounds the weights. None: the class of `options.estimator`.

    Returns:
        The decision for each weight, with its reason.

    Raises:
        UsageError: if the model is already prepared, the recipe is unknown, a pattern matches
            nothing, or the recipe quantizes routed experts.
        InputError: if a weight is not finite, or if the model is already quantized or has adapters.

    On error, the model is left unchanged.
    """
    check_unprepared(model)
    plan = make_plan(model, load_recipe(recipe))
    put_fake_quantized(model, plan, options or QatOptions(), quantizer)
    return plan


def put_fake_quantized(
    model: nn.Module, plan: Plan, options: QatOptions, quantizer: WeightQuantizer | None = None
) -> None:
    """Fake-quantize the modules of a plan. Else the same as `prepare_qat`."""
    check_no_experts(plan, "quantization-aware training")
    quantizer = quantizer or ESTIMATORS[options.estimator]
    modules: dict[str, FakeQuantized] = {}
    decisions: tuple[Quantize | TiedTo, ...] = (*plan.owners, *plan.tied)
    for d in decisions:
        owner = modules[d.source.name].weight_quantizer if isinstance(d, TiedTo) else None
        module = model.get_submodule(d.weight.module)
        modules[d.name] = _stand_in(module, d, options, quantizer, owner)
    with unchanged_on_error(model):
        for name, module in modules.items():
            hand_over_hooks(model.get_submodule(name), module)
            replace_module(model, name, module.train(model.training))
        vars(model).update(lowbit_recipe=plan.recipe, lowbit_prepared=tuple(modules))


def check_unprepared(model: nn.Module) -> None:
    """Raises UsageError if a model has fake-quantized modules."""
    if any(isinstance(module, FakeQuantized) for module in model.modules()):
        raise UsageError("the model is prepared for quantization-aware training already")


def finish_qat(model: nn.Module, progress: bool = True) -> Result:
    """Replace the fake-quantized modules of `prepare_qat` by quantized modules, in place.

    The quantized modules have the rounded weights of the training. Afterwards the model is in
    evaluation mode.

    Args:
        model: A model that `prepare_qat` changed, after training.
        progress: Show a progress bar if it takes more than two seconds.

    Returns:
        The plan, sizes in bytes before and after, the error of each weight, and notes.

    Raises:
        UsageError: if the model was not prepared, if a prepared module was replaced or removed, or
            if a static range observed no data.
        InputError: if a weight is not finite.

    On error, the model is left unchanged.
    """
    stand_ins = fake_quantized(model)
    if not stand_ins:
        raise UsageError("the model was not prepared for quantization-aware training")
    if lost := [name for name in vars(model)["lowbit_prepared"] if name not in stand_ins]:
        raise UsageError(
            f"{lost[0]} was replaced or removed after prepare_qat: change modules before it"
        )
    with unchanged_on_error(model):
        model.eval()
        static = static_scales(model)
        recipe: Recipe = vars(model)["lowbit_recipe"]
        restore_float(model)
        return quantize_with(
            model,
            make_plan(model, recipe),
            lambda decision, weight: stand_ins[decision.name].weight_quantizer.stored(weight),
            static,
            progress,
        )


def static_scales(model: nn.Module) -> dict[str, tuple[StaticScale, ...]]:
    """The static scales of a prepared model: for each layer, the scale of its inputs, and of its
    outputs if they are int8. Raises UsageError if a range observed no data."""
    found = {}
    for name, module in fake_quantized(model).items():
        if isinstance(module, FakeQuantLinear) and isinstance(module.input_quantizer, Observer):
            ranges = filter(None, (module.input_quantizer, module.output_quantizer))
            with naming(name):
                found[name] = tuple(each.static() for each in ranges)
    return found


def restore_float(model: nn.Module) -> None:
    """Replace fake-quantized modules by float modules with the parameters of the training, in
    place."""
    for name, module in fake_quantized(model).items():
        float_module = module.restored()
        hand_over_hooks(module, float_module)
        replace_module(model, name, float_module)
    for name in ("lowbit_recipe", "lowbit_prepared"):
        vars(model).pop(name, None)


def fake_quantized(model: nn.Module) -> dict[str, FakeQuantized]:
    """The fake-quantized modules by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantized)}


def _stand_in(
    module: nn.Module,
    decision: Quantize | TiedTo,
    options: QatOptions,
    new: WeightQuantizer,
    owner: StraightThrough | None,
) -> FakeQuantized:
    """A module, fake-quantized. owner: the quantizer of its weight, if the weight is tied."""
    scheme = (decision.source if isinstance(decision, TiedTo) else decision).scheme
    weights = decision.weights
    with naming(decision.name):
        quantizer = owner or new(scheme, matrix(module, weights))
    if weights.kind == "embedding":
        return FakeQuantEmbedding(module, weights, quantizer, options.start, owner is not None)
    width = scheme.granularity.width(weights.shape[1])
    kinds = {
        "float": lambda: None,
        "dynamic": lambda: TokenRange(width),
        **dict.fromkeys(STATIC, options.new_observer),
    }
    inputs = kinds[decision.activations]()
    rounds_outputs = issubclass(ACTIVATIONS[decision.activations][0], RequantizedLinear)
    outputs = options.new_observer() if rounds_outputs else None
    return FakeQuantLinear(
        module, weights, quantizer, options.start, owner is not None, inputs, outputs
    )
