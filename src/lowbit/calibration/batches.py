"""Calibration data as models take it: token ids [samples, length], or any model inputs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Integer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.errors import InputError, UsageError

SAMPLES_AT_ONCE = 8

Calibration = Integer[Tensor, "samples length"] | Iterable[Mapping[str, Tensor]]


def batches_of(calibration: Calibration, model: nn.Module) -> list[dict[str, Tensor]]:
    """The model inputs of each batch, on the model's device.

    An encoder–decoder that gets token ids alone reads them on both sides, the decoder one token
    later. Raises UsageError for data of another kind, for a tensor that holds no token ids, and for
    any tensor if this is no transformers model; InputError for no data.
    """
    if isinstance(calibration, Tensor):
        if not isinstance(model, PreTrainedModel):
            raise UsageError(
                f"token ids calibrate a transformers model; {type(model).__name__} needs batches"
                " that are mappings from the names of its inputs to tensors"
            )
        _check(calibration, model.config.get_text_config().vocab_size)
        batches = [_inputs(ids, model) for ids in calibration.split(SAMPLES_AT_ONCE)]
    else:
        if isinstance(calibration, str | Path | Mapping) or not isinstance(calibration, Iterable):
            raise _no_batches(calibration)
        batches = [_batch(batch) for batch in calibration]
    if not batches or not all(len(x) for batch in batches for x in batch.values()):
        raise InputError("the calibration data holds no batch, or one without samples")
    device = device_of(model)
    return [{name: x.to(device) for name, x in batch.items()} for batch in batches]


def _batch(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(batch, Mapping):
        raise _no_batches(batch)
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise _no_batches(value, f"{type(value).__name__} as {name}")
    return dict(batch)


def _no_batches(given: object, kind: str | None = None) -> UsageError:
    if isinstance(given, str | Path):
        return UsageError(
            f"calibration takes no text or file ({str(given)[:100]!r}): give token ids [samples,"
            " length] of the model's tokenizer; lowbit.quantize_calibrated reads text files"
        )
    return UsageError(
        "calibration takes token ids [samples, length], or a list of mappings from the names of"
        f" inputs to tensors, not {kind or type(given).__name__}"
    )


def device_of(model: nn.Module) -> torch.device:
    """The device of its first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _inputs(ids: Integer[Tensor, "samples length"], model: PreTrainedModel) -> dict[str, Tensor]:
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = decoder_inputs(ids, model)
    return inputs


def decoder_inputs(
    targets: Integer[Tensor, "samples length"], model: PreTrainedModel
) -> Integer[Tensor, "samples length"]:
    """What a decoder reads to predict `targets`: its start token, then all but the last."""
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    return torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], 1)


def _check(ids: Tensor, vocabulary: int) -> None:
    if ids.ndim != 2 or ids.is_floating_point():
        raise UsageError(
            f"calibration takes token ids [samples, length], not {ids.dtype} {list(ids.shape)}"
        )
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if len(wrong):
        raise InputError(
            f"calibration token {wrong[0]} is outside the model's vocabulary of {vocabulary}"
        )
