"""What quantization-aware training learned beside the weights: ranges of activations, scales of
weights, and how many passes there were. One safetensors file, from which training goes on and
finishing can be repeated.

    {module}.{tensor}    as in the prepared model's state dict, without weight and bias
    metadata             "format" lowbit-qat, "version" 1, "recipe" and "options" as JSON
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lowbit.checkpoint.documents import reading
from lowbit.conversion.plan import Plan
from lowbit.conversion.recipe import Recipe
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import InputError
from lowbit.qat.prepare import QatOptions, fake_quantized, prepare_qat

LEARNED = "qat.safetensors"
FORMAT, VERSION = "lowbit-qat", "1"
OWN = ("weight", "bias")  # the float model's, which its checkpoint has


@dataclass(frozen=True)
class Learned:
    """What a file holds: how the model was prepared, and what it learned."""

    recipe: Recipe
    options: QatOptions
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, file: str | Path) -> "Learned":
        """Raises InputError if the file holds nothing that training learned."""
        with reading(file, "read"), safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
            raise InputError(f"{file} holds no learned values ({FORMAT} {VERSION})")
        try:
            recipe = Recipe.from_dict(json.loads(told["recipe"]))
            options = QatOptions(**json.loads(told["options"]))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{file} does not say how the model was prepared: {error}") from error
        return cls(recipe, options, tensors)

    def put(self, model: nn.Module) -> None:
        """Let a model that was prepared alike go on from here. Raises InputError, and changes
        nothing, where names or shapes are not those of the model."""
        wanted = learned_state(model)
        if wanted.keys() != self.tensors.keys():
            name = sorted(wanted.keys() ^ self.tensors.keys())[0]
            where = "the file" if name in wanted else "the model"
            raise InputError(f"what training learned does not fit the model: {where} lacks {name}")
        for name, tensor in self.tensors.items():
            if tensor.shape != wanted[name].shape:
                raise InputError(
                    f"what training learned does not fit the model: {name} is"
                    f" {list(tensor.shape)}, expected {list(wanted[name].shape)}"
                )
        model.load_state_dict(dict(self.tensors), strict=False)


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """What fake quantization added to the state of a prepared model."""
    return {
        f"{name}.{key}": tensor
        for name, module in fake_quantized(model).items()
        for key, tensor in module.state_dict().items()
        if key not in OWN
    }


def save_learned(model: nn.Module, options: QatOptions, file: Path) -> None:
    """Write what a prepared model learned. Raises OSError."""
    recipe: Recipe = vars(model)["lowbit_recipe"]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "recipe": json.dumps(recipe.to_dict()),
        "options": json.dumps(asdict(options)),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in learned_state(model).items()}
    save_file(tensors, file, metadata=metadata)


def resume_qat(model: nn.Module, learned: str | Path) -> Plan:
    """Prepare a float model as it was when it was trained, with what it learned; in place.

    learned: the file that `lowbit train` writes beside the float model, or its folder. The model
    then computes as it did at the end of training: train it on, or `finish_qat`.

    Raises InputError for a file that is not one, or not of this model; then nothing has changed.
    """
    path = Path(learned)
    found = Learned.read(path / LEARNED if path.is_dir() else path)
    with unchanged_on_error(model):
        plan = prepare_qat(model, found.recipe, found.options)
        found.put(model)
    return plan


def same_recipe(one: Recipe, other: Mapping[str, Any] | Recipe) -> bool:
    """Whether two recipes say the same, whatever they are called."""
    stored = other.to_dict() if isinstance(other, Recipe) else dict(other)
    return one.to_dict()["rules"] == Recipe.from_dict(stored).to_dict()["rules"]
