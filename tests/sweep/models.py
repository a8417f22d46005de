"""Tiny models whose weights show a fault, and calls that their forward passes take."""

import copy
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.sweep.configs import DATA, parts

BATCH, TOKENS, TARGETS = 2, 16, 10
LOWEST_TOKEN, HIGHEST_TOKEN = 6, 130  # Neither special tokens nor placeholders of images.
UNTOUCHED = re.compile(DATA["untouched"])
# Of outputs, what is no result: caches, and copies of what is compared already.
NOT_COMPARED = {
    "past_key_values", "cache_params", "state", "mems", "past_buckets_states", "loss",
    "hidden_states", "attentions",
}  # fmt: skip

Call = tuple[str, dict[str, Any]]  # The name of a method, and its keyword arguments.


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Give every parameter its own noise: no zeros and no ones, and outputs of order 1."""
    generator = seeded(0)
    done: set[int] = set()
    for name, module in model.named_modules():
        for own, p in module.named_parameters(recurse=False):
            if id(p) in done or not p.is_floating_point() or p.numel() == 0:
                continue
            done.add(id(p))
            noise = torch.randn(p.shape, generator=generator)
            usual = bool(p.isfinite().all()) and p.abs().max() < 1e4
            if isinstance(module, nn.Embedding) and own == "weight":
                p.copy_(0.5 * noise)
                if module.padding_idx is not None:
                    p[module.padding_idx] = 0
            elif usual and UNTOUCHED.search(f"{name}.{own}"):
                continue
            elif p.dim() >= 2 and p.numel() > 256:
                p.copy_(noise * 0.7 / math.sqrt(_inputs(module, p)))
            else:
                p.copy_(0.1 * noise + (p if usual else 0))
    for buffer in model.buffers():
        if buffer.is_floating_point() and not buffer.isfinite().all():
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def _inputs(module: nn.Module, p: Tensor) -> int:
    """How many products an output of weight `p` sums, or about that."""
    if type(module).__name__ == "Conv1D":
        return p.shape[0]
    if p.dim() == 3 and not isinstance(module, nn.Conv1d):
        return max(p.shape[1:])  # A mixture's experts, whichever way round.
    return math.prod(p.shape[1:])


def run(model: nn.Module, calls: list[Call], **more: Any) -> dict[str, Tensor]:
    """Every float tensor that `calls` return, by name. Floats are given in the model's dtype."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    torch.manual_seed(0)
    found: dict[str, Tensor] = {}
    for method, arguments in calls:
        given = {name: _copied(value, dtype) for name, value in arguments.items()}
        with torch.no_grad():
            found |= dict(_floats(getattr(model, method)(**given, **more), method))
    return found


def _copied(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()


def _floats(output: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield name, output
    elif isinstance(output, dict):
        for key, value in output.items():
            if key not in NOT_COMPARED:
                yield from _floats(value, f"{name}.{key}")
    elif isinstance(output, (list, tuple)):
        for i, value in enumerate(output):
            yield from _floats(value, f"{name}.{i}")


def calls_of(model: PreTrainedModel) -> list[Call]:
    """Calls that the float model answers with finite numbers. Raises the first try's error."""
    first: Exception | None = None
    model = copy.deepcopy(model)  # A forward pass may change weights.
    for arguments in _arguments(model):
        try:
            if _answers(model, "forward", arguments):
                break
        except Exception as error:
            first = first or error
    else:
        raise first or ValueError("no input is known for its forward pass")
    calls = [("forward", arguments)]
    if not any(name.startswith(("pixel", "input_features")) for name in arguments):
        for method, tries in _feature_arguments(model):
            for given in tries:
                try:
                    if _answers(model, method, given):
                        calls.append((method, given))
                        break
                except Exception:
                    continue
    return calls


def _answers(model: nn.Module, method: str, arguments: dict[str, Any]) -> bool:
    answer = run(model, [(method, arguments)])
    return bool(answer) and all(bool(t.isfinite().any()) for t in answer.values())


def tokens(*shape: int, seed: int = 1, highest: int = HIGHEST_TOKEN) -> Tensor:
    return torch.randint(LOWEST_TOKEN, highest, shape, generator=seeded(seed))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(2))


def _written(value: Any) -> Tensor:
    """The tensor that a text of tiny.yaml stands for."""
    if not isinstance(value, str):
        return torch.tensor(value)
    pieces = []
    for piece in value.split(" + "):
        kind, *shape = piece.replace(" x ", " ").split()
        sizes = [int(size) for size in shape]
        if kind == "tokens":
            pieces.append(tokens(*sizes))
        elif kind == "noise":
            pieces.append(noise(*sizes))
        else:
            filling = {"ones": 1, "zeros": 0}.get(kind)
            pieces.append(torch.full(sizes, int(kind) if filling is None else filling))
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]


def _field(config: Any, *names: str, default: int) -> int:
    """The first of `names` that a configuration or a part of it gives a number to."""
    for part in parts(config):
        for name in names:
            value = getattr(part, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return default


def _arguments(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Keyword arguments that the forward pass may take, the most telling first."""
    config = model.config
    names = set(inspect.signature(model.forward).parameters)
    for written in DATA["inputs"].get(config.model_type, []):
        if set(written) <= names:
            yield {name: _written(value) for name, value in written.items()}

    highest = min(HIGHEST_TOKEN, _smallest_vocabulary(config))
    decoder = {}
    text_only = model.main_input_name == "input_ids" and not config.is_encoder_decoder
    if "decoder_input_ids" in names and (not text_only or "decoder_attention_mask" in names):
        decoder = {"decoder_input_ids": tokens(BATCH, TARGETS, seed=3, highest=highest)}
    channels = _field(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if channels <= 4 else 3
    own = _field(config, "image_size", "img_size", "input_size", default=32)
    sizes = list(dict.fromkeys([own, 32, 64, 224]))
    images = [noise(BATCH, channels, size, size) for size in sizes]

    if "input_ids" in names:
        texts = [_text(names, length, highest) for length in (TOKENS, 64)]
        if config.is_encoder_decoder and isinstance(getattr(config, "eos_token_id", None), int):
            # Classifiers read the last end of a sentence.
            texts[0]["input_ids"][:, -1] = config.eos_token_id
        if "pixel_values" in names:
            yield from (texts[0] | decoder | {"pixel_values": image} for image in images[:2])
        if "image" in names:
            yield texts[0] | decoder | {"image": noise(BATCH, 3, 224, 224)}
        yield from (text | decoder for text in texts)
        yield {"input_ids": texts[0]["input_ids"]}
        yield texts[0]
        # Several answers to each question.
        yield {name: value[:, None].repeat_interleave(3, 1) for name, value in texts[0].items()}
    if "pixel_values" in names:
        for image in images:
            yield {"pixel_values": image} | decoder
            yield {"pixel_values": image[:, None]} | decoder
        yield from (given for given in _image_arguments(config) if set(given) <= names)
        frames = _field(config, "num_frames", "frames_per_clip", default=8)
        for size in sizes[:2]:
            yield {"pixel_values": noise(BATCH, frames, channels, size, size)}
    if {"hidden_states", "grid_thw"} <= names:
        for given in _image_arguments(config):
            if "grid_thw" in given:
                yield {"hidden_states": given["pixel_values"], "grid_thw": given["grid_thw"]}
    if "pixel_values_videos" in names:
        frames = _field(config, "frames_per_clip", "num_frames", default=4)
        yield {"pixel_values_videos": noise(BATCH, frames, channels, own, own)}
    bins = _field(config, "num_mel_bins", "feature_size", "input_feat_per_channel", default=16)
    if "input_features" in names:
        frames = 2 * _field(config, "max_source_positions", default=30)
        for shape in ((bins, frames), (64, bins), (bins, 64), (128, bins), (1, 64, bins)):
            yield {"input_features": noise(BATCH, *shape)} | decoder
            yield {"input_features": noise(BATCH, *shape)}
    if "input_values" in names:
        length = _field(config, "max_length", default=64)
        for shape in ((4000,), (16000,), (1, 4000), (length, bins), (64, bins)):
            yield {"input_values": 0.5 * noise(BATCH, *shape)} | decoder
        spectrogram = noise(BATCH, 20, bins)
        yield {"input_values": noise(BATCH, 4000), "decoder_input_values": spectrogram}
    if "past_values" in names:
        length = _field(config, "context_length", default=16)
        for series in (_field(config, "num_input_channels", default=1), 1):
            yield {"past_values": noise(BATCH, length, series)}


def _text(names: set[str], length: int, highest: int) -> dict[str, Any]:
    text = {"input_ids": tokens(BATCH, length, highest=highest)}
    if "attention_mask" in names:
        text["attention_mask"] = torch.ones(BATCH, length, dtype=torch.long)
    if "bbox" in names:
        boxes = torch.randint(0, 100, (BATCH, length, 4), generator=seeded(4))
        text["bbox"] = boxes.sort(-1).values
    return text


def _smallest_vocabulary(config: Any) -> int:
    sizes = [getattr(part, "vocab_size", None) for part in parts(config)]
    return min((s for s in sizes if isinstance(s, int) and s > LOWEST_TOKEN), default=HIGHEST_TOKEN)


def _feature_arguments(
    model: PreTrainedModel,
) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Methods that read images or sounds for a language model, with arguments to try."""
    if hasattr(model, "get_image_features"):
        yield "get_image_features", _image_arguments(model.config)
    if hasattr(model, "get_audio_features"):
        yield "get_audio_features", _audio_arguments(model.config)


def _image_arguments(config: Any) -> Iterator[dict[str, Any]]:
    vision = getattr(config, "vision_config", None) or config
    channels = _field(vision, "num_channels", "in_channels", "in_chans", default=3)
    patch = _field(vision, "patch_size", default=8)
    own = _field(vision, "image_size", default=32)
    for size in dict.fromkeys([own, 32, 64, 4 * patch, 8 * patch]):
        image, sizes = noise(1, channels, size, size), torch.tensor([[size, size]])
        yield {"pixel_values": image}
        yield {"pixel_values": image, "image_sizes": sizes}
        yield {"pixel_values": image[:, None]}
        for tiles in (1, 2, 3):
            tiled = image[:, None].repeat(1, tiles, 1, 1, 1)
            yield {"pixel_values": tiled, "image_sizes": sizes}
    grid = torch.tensor([[1, 4, 4]])
    for times in dict.fromkeys([_field(vision, "temporal_patch_size", default=1), 1, 2]):
        patches = noise(16, channels * times * patch * patch)
        for name in ("image_grid_thw", "grid_thw", "image_grid_hws", "grid_thws"):
            yield {"pixel_values": patches, name: grid}
            yield {"pixel_values": patches.view(16, channels * times, patch, patch), name: grid}
        whole = torch.ones(1, 16, dtype=torch.long)
        shapes = {"spatial_shapes": grid[:, 1:], "pixel_attention_mask": whole}
        yield {"pixel_values": patches[None], **shapes}
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
        for name in ("image_position_ids", "pixel_position_ids"):
            yield {"pixel_values": patches[None], name: places}


def _audio_arguments(config: Any) -> Iterator[dict[str, Any]]:
    audio = getattr(config, "audio_config", None) or config
    bins = _field(audio, "num_mel_bins", "input_feat_size", default=16)
    frames = 2 * _field(audio, "max_source_positions", default=32)
    for shape in ((bins, frames), (64, bins), (bins, 64), (bins, 3000)):
        features = noise(1, *shape)
        whole = torch.ones(1, max(shape), dtype=torch.long)
        yield {"input_features": features}
        yield {"input_features": features, "input_features_mask": whole}
        yield {"input_features": features, "feature_attention_mask": whole}
        yield {"input_features": features, "input_features_mask": whole.bool()}
    for length in (4000, 16000):
        yield {"input_values": 0.5 * noise(1, 1, length)}
        yield {"input_values": 0.5 * noise(1, length)}
