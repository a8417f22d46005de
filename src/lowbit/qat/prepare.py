"""From a float model to one that trains towards integers, and from there to the integers.

prepare_qat(model, "int8-static")   every module that the recipe quantizes gets a stand-in
train it with anything
finish_qat(model)                   stored forms in their place: an integer model
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.calibration.observers import RANGES, Range
from lowbit.conversion.apply import Result, quantize_with
from lowbit.conversion.module_weights import matrix
from lowbit.conversion.plan import Plan, Quantize, TiedTo, check_no_experts, make_plan
from lowbit.conversion.recipe import Recipe, load_recipe
from lowbit.conversion.swap import hand_over_hooks, replace_module
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import UsageError, check_choice, naming
from lowbit.formats import StaticScale
from lowbit.nn import ACTIVATIONS, STATIC, RequantizedLinear
from lowbit.qat.modules import (
    FakeQuantEmbedding,
    FakeQuantized,
    FakeQuantLinear,
    TokenRange,
)
from lowbit.qat.weights import ESTIMATORS, Straight, WeightQuantizer


@dataclass(frozen=True)
class QatOptions:
    """How to train towards a recipe.

    Attributes:
        estimator: How gradients pass the rounding of weights: "ste" (straight-through; Bengio et
            al. 2013), "clipped", or "lsq" (learned step size; Esser et al. 2020).
        ranges: How ranges of static activations are found: "mse", "ema", "learned", "minmax" or
            "percentile".
        range_options: Options of these, such as {"decay": 0.999}.
        symmetric: Static activations without a zero point. With one, the output of a GELU or
            ReLU has twice as many codes.
        start: Training passes through a layer that stay float and only observe ranges. A layer
            that several blocks share, as in ALBERT, is passed once for each of them.

    Raises:
        UsageError: for an unknown name or option.
    """

    estimator: str = "ste"
    ranges: str = "mse"
    range_options: Mapping[str, float] = field(default_factory=dict)
    symmetric: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        for kind, name, table in (
            ("estimator", self.estimator, ESTIMATORS),
            ("range", self.ranges, RANGES),
        ):
            check_choice(kind, name, table)
        if self.start < 0:
            raise UsageError(f"start {self.start} is before the first training pass")
        self.new_range()

    def new_range(self) -> Range:
        return RANGES[self.ranges](self.symmetric, **self.range_options)


def prepare_qat(
    model: nn.Module,
    recipe: str | Path | Recipe | Mapping[str, Any],
    options: QatOptions | None = None,
    quantizer: WeightQuantizer | None = None,
) -> Plan:
    """Replace the modules that a recipe quantizes by stand-ins that train towards it, in place.

    Parameters keep their names and identity. Tied weights share one quantizer.

    Args:
        model: A float model.
        recipe: As in `lowbit.quantize`.
        options: How to train. None: `QatOptions()`.
        quantizer: Rounds the weights, instead of that of `options.estimator`.

    Returns:
        What happens to each weight, and why.

    Raises:
        UsageError: for what the recipe or the options cannot do.
        InputError: for a weight that is not finite.
    """
    check_unprepared(model)
    plan = make_plan(model, load_recipe(recipe))
    put_stand_ins(model, plan, options or QatOptions(), quantizer)
    return plan


def put_stand_ins(
    model: nn.Module, plan: Plan, options: QatOptions, quantizer: WeightQuantizer | None = None
) -> None:
    """As `prepare_qat` does, for a float model whose plan is made."""
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
    """Raises UsageError for a model that has stand-ins."""
    if any(isinstance(module, FakeQuantized) for module in model.modules()):
        raise UsageError("the model is prepared for quantization-aware training already")


def finish_qat(model: nn.Module, progress: bool = True) -> Result:
    """Replace the stand-ins of `prepare_qat` by quantized modules, in place.

    They compute with the same weights that training computed with. The model is then in evaluation
    mode.

    Args:
        model: A model that was prepared and trained.
        progress: Show a bar if it takes more than two seconds.

    Returns:
        The plan, sizes in bytes before and after, the error of each weight, and notes.

    Raises:
        UsageError: for a model that was not prepared, whose static ranges saw no data, or in which
            a prepared module was replaced.

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
    """The scales that a prepared model has found: of a layer's activations, and of its outputs
    where they are requantized. Raises UsageError where one saw no data."""
    found = {}
    for name, module in fake_quantized(model).items():
        if isinstance(module, FakeQuantLinear) and isinstance(module.input_quantizer, Range):
            ranges = filter(None, (module.input_quantizer, module.output_quantizer))
            with naming(name):
                found[name] = tuple(each.static() for each in ranges)
    return found


def restore_float(model: nn.Module) -> None:
    """Put the float modules back, with the parameters that were computed with; in place."""
    for name, module in fake_quantized(model).items():
        float_module = module.restored()
        hand_over_hooks(module, float_module)
        replace_module(model, name, float_module)
    for name in ("lowbit_recipe", "lowbit_prepared"):
        vars(model).pop(name, None)


def fake_quantized(model: nn.Module) -> dict[str, FakeQuantized]:
    """The stand-ins by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantized)}


def _stand_in(
    module: nn.Module,
    decision: Quantize | TiedTo,
    options: QatOptions,
    new: WeightQuantizer,
    owner: Straight | None,
) -> FakeQuantized:
    """The stand-in of a module; `owner`: the quantizer of the weight that it shares."""
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
        **dict.fromkeys(STATIC, options.new_range),
    }
    inputs = kinds[decision.activations]()
    rounds_outputs = issubclass(ACTIVATIONS[decision.activations][0], RequantizedLinear)
    outputs = options.new_range() if rounds_outputs else None
    return FakeQuantLinear(
        module, weights, quantizer, options.start, owner is not None, inputs, outputs
    )
