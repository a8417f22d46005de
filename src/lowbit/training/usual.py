"""The usual hyper-parameters, as plain data: help shows them without importing what trains."""

from dataclasses import dataclass

# What --qat alone trains towards: everything in 8 bits, as in the reference (docs/references.md).
EVERYTHING = "int8-all"
SCHEDULES = ("linear", "cosine", "inverse_sqrt", "constant_with_warmup")
# Tokens of an example. A window of SQuAD has a question too, and overlaps with the next one.
MAX_LENGTH, MAX_LENGTH_OF_TASK = 128, {"squad": 384}


@dataclass(frozen=True)
class Usual:
    """The fields of `Settings` that are numbers and names, with the defaults of fine-tuning."""

    qat: str = "none"
    distill: float = 0.0
    learning_rate: float = 5e-5
    epochs: float = 3.0
    max_steps: int = 0
    batch_size: int = 32
    accumulate: int = 1
    warmup: float = 0.1
    schedule: str = "linear"
    label_smoothing: float = 0.0
    weight_decay: float = 0.01
    eval_steps: int = 0
    save_steps: int = 0
    evaluate_during_training: bool = True
    bf16: bool = False
    seed: int = 42


# What suits a task better than the settings of fine-tuning: a translator starts from nothing.
OF_TASK = {
    "translation": Usual(
        learning_rate=1e-3,
        epochs=20.0,
        batch_size=64,
        schedule="inverse_sqrt",
        label_smoothing=0.1,
    )
}
