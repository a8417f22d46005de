"""A tiny configuration for any model class, from the fields of its configuration class."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import CONFIG_MAPPING, PreTrainedConfig

DATA = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
KEPT = object()
COMMON = {field.name for field in fields(PreTrainedConfig)} - {"chunk_size_feed_forward"}
SPECIAL_TOKEN = re.compile(r".*(token_ids?|token_index|token_idx|_id)")
ORDINARY_TOKENS = 100  # Ids below are the same in a tiny vocabulary; those above move under 150.
HEADS = ("num_attention_heads", "n_heads", "num_heads", "n_head")
LAYER_KINDS = {"layer_types", "layers_block_type", "block_types"}


def tiny_config(model_class: type, model_type: str, padded: bool) -> PreTrainedConfig:
    """The configuration of a model of about 100,000 parameters.

    padded: whether it names a padding token where the default configuration names none.
    """
    config_class = model_class.config_class
    registered = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else config_class
    if config_class is None or issubclass(registered, config_class):
        config_class = registered
    values = _tiny(config_class, {}, {}, padded)
    values = _merged(values, DATA["classes"].get(model_class.__name__, {}))
    config = config_class(**values)
    for part in parts(config):
        if getattr(part, "use_cache", None) is False:
            part.use_cache = True
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 2
    return config


def parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and those inside it, the outermost first."""
    found = [config]
    for part in found:
        found += [value for value in vars(part).values() if isinstance(value, PreTrainedConfig)]
    return found


def _tiny(
    config_class: type, given: dict[str, Any], tokens: dict[str, int], padded: bool
) -> dict[str, Any]:
    """Arguments of `config_class`. `tokens` collects the special tokens of all parts."""
    defaults = _defaults(config_class) | given
    inner = getattr(config_class, "sub_configs_defaults", {})
    values = dict(given)
    for name, default in defaults.items():
        if name not in inner and (value := _shrunk(name, default, tokens)) is not KEPT:
            values[name] = value
    layers = DATA["layers"]
    if LAYER_KINDS & set(defaults) and "num_hidden_layers" in values:
        values["num_hidden_layers"] = layers["alternating"]
    if config_class.model_type in layers:
        values["num_hidden_layers"] = layers[config_class.model_type]
    if isinstance(outputs := defaults.get("out_indices"), (list, tuple)):
        if "num_hidden_layers" in values:
            # Whoever reads a backbone expects as many levels as by default.
            values["num_hidden_layers"] = max(values["num_hidden_layers"], len(outputs))
            values["out_indices"] = list(range(1, len(outputs) + 1))
    heads = next((defaults[name] for name in HEADS if isinstance(defaults.get(name), int)), None)
    if heads is not None and defaults.get("num_key_value_heads") == heads:
        values["num_key_value_heads"] = values[next(n for n in HEADS if n in values)]
    if "head_dim" in defaults and defaults["head_dim"] is None:
        values["head_dim"] = 16
    if padded and defaults.get("pad_token_id", 0) is None:
        values["pad_token_id"] = 0
    for name, part in inner.items():
        if part.optional and name not in DATA["optional_parts"] and defaults.get(name) is None:
            continue
        part_class = part.config_class
        if not (isinstance(part_class, type) and issubclass(part_class, PreTrainedConfig)):
            if part.model_type not in CONFIG_MAPPING:
                continue
            part_class = CONFIG_MAPPING[part.model_type]
        arguments = _tiny(part_class, dict(part.init_kwargs or {}), tokens, padded)
        values[name] = {"model_type": part_class.model_type, **arguments}
    return _merged(values, DATA["configs"].get(config_class.model_type, {}))


def _defaults(config_class: type) -> dict[str, Any]:
    found = {}
    for field in fields(config_class):
        if field.name in COMMON:
            continue
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found


def _shrunk(name: str, value: Any, tokens: dict[str, int]) -> Any:
    """What replaces the default `value` of a field, or KEPT."""
    if isinstance(value, bool):
        return False if name == "apply_spec_augment" else KEPT
    if SPECIAL_TOKEN.fullmatch(name):
        if isinstance(value, int):
            return _token(name, value, tokens)
        if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
            return [_token(f"{name}.{i}", v, tokens) for i, v in enumerate(value)]
        return KEPT
    if isinstance(value, (int, float)):
        for rule, *number, pattern in DATA["fields"]:
            if re.fullmatch(pattern, name):
                return _ruled(rule, value, *number)
    if isinstance(value, (list, tuple)) and value:
        for numbers, pattern in DATA["lists"]:
            if re.fullmatch(pattern, name):
                repeated = numbers * len(value) if len(numbers) == 1 else numbers
                return repeated[: len(value)]
    return KEPT


def _ruled(rule: str, value: float, number: float = 0) -> Any:
    if rule == "keep" or type(value) is not type(number):
        return KEPT
    if rule == "at_most":
        return min(value, number)
    if rule == "above_200":
        return number if value > 200 else KEPT
    return number


def _token(name: str, token: int, tokens: dict[str, int]) -> int:
    if token < ORDINARY_TOKENS:
        return token
    return tokens.setdefault(name, 150 - len(tokens))


def _merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in others.items():
        inside = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if inside else value
    return merged
