"""How to train: hyper-parameters, and the integers that are trained towards."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lowbit.conversion.recipe import PRESETS, Recipe, load_recipe, names_a_folder
from lowbit.errors import UsageError, check_at_least, check_choice
from lowbit.qat.prepare import QatOptions
from lowbit.training.bcq import BcqPlan
from lowbit.training.usual import SCHEDULES, Usual

# What else training writes.
OUTPUTS = (
    "checkpoints",
    "float",
    "baseline",
    "texts",
    "output.txt",
    "ref.txt",
    "training.json",
)


@dataclass(frozen=True)
class Settings(Usual):
    """How to train; the names are those of transformers' TrainingArguments.

    qat: "none" trains in float. A recipe with float activations, such as "int8" or "int4", is taken
    with static ones ("int8-static"); others are taken as they are. max_steps: 0 for whole epochs.
    warmup: share of all steps; schedule: of the learning rate after it. label_smoothing: the share
    that is spread over all labels. eval_steps, save_steps: 0 for once an epoch; where the best
    checkpoint is kept, one is saved at each evaluation. plan: towards binary codes, in place of
    `qat`. distill: the share of the loss that is the divergence from the model as it started.

    Raises UsageError for a schedule that is unknown and numbers that cannot be.
    """

    plan: BcqPlan | None = None
    options: QatOptions = field(default_factory=QatOptions)

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("batch_size", "accumulate"):
            check_at_least(name, getattr(self, name), 1)
        steps = "max_steps", "eval_steps", "save_steps"
        for name in (*steps, "weight_decay", "learning_rate", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0 and finite, not {getattr(self, name)}")
        if not 0 < self.epochs < math.inf:
            raise UsageError(f"epochs must be more than 0 and finite, not {self.epochs}")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is not a share from 0 to below 1")
        if not 0 <= self.distill <= 1:
            raise UsageError(f"a share of {self.distill} of the loss is outside 0 … 1")
        if self.plan is not None and self.qat != "none":
            raise UsageError(f"qat {self.qat} and a plan for binary codes cannot both be trained")

    @property
    def recipe(self) -> str | Recipe | None:
        """The recipe that is trained towards; None for float. Raises UsageError."""
        if self.plan is not None:
            return self.plan.recipe
        if self.qat == "none":
            return None
        static = f"{self.qat}-static"
        if static in PRESETS:
            return static
        if not self.qat.endswith((".yaml", ".yml")):
            check_choice("qat", self.qat, PRESETS, "none, or a recipe such as int8 or int4")
        return self.qat

    @property
    def folder(self) -> str:
        """Where the model that was trained towards is saved. Raises UsageError for a recipe whose
        name is no folder's, or that of another."""
        name = self.qat if self.plan is None else self.plan.recipe.name
        if name.endswith((".yaml", ".yml")):
            name = load_recipe(name).name
        if not names_a_folder(name) or name in OUTPUTS:
            raise UsageError(f"the recipe's name {name!r} cannot name a folder beside the others")
        return name

    def to_dict(self) -> dict[str, Any]:
        """For people. A recipe is there as its rules too: a file may change."""
        recipe = self.recipe
        return {
            **asdict(self),
            "plan": None if self.plan is None else self.plan.to_dict(),
            "recipe": None if recipe is None else load_recipe(recipe).to_dict(),
        }
