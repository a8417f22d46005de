"""Generate a sample of text."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.checkpoint.documents import reading
from lowbit.errors import InputError, UsageError, check_at_least
from lowbit.nn.eval_mode import evaluating, positions


def generate_sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    seed: int,
    top_k: int = 30,
) -> str:
    """The prompt and up to `max_new_tokens` tokens sampled after it, as text.

    The same seed gives the same text; torch's random state does not change. Raises UsageError if
    the model does not generate or a count is below 1, InputError if the prompt has no tokens or
    leaves too few positions.
    """
    ids = torch.tensor(tokenizer(prompt).input_ids, dtype=torch.long)
    _check(model, len(ids), max_new_tokens)
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        tokens = _generate(
            model,
            ids,
            do_sample=True,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _generate(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """The tokens of one sequence; for a decoder, the prompt `ids` first."""
    batch = ids[None].to(model.device)
    # generation_config.json may have any settings, and damaged weights may give NaN.
    with reading(f"a text of {model.name_or_path or type(model).__name__}", "generated"):
        tokens: Tensor = model.generate(batch, attention_mask=torch.ones_like(batch), **options)
    return tokens[0]


def _check(model: PreTrainedModel, prompt: int, new: int) -> None:
    if not model.can_generate():
        raise UsageError(f"{type(model).__name__} does not generate text")
    check_at_least("new tokens", new, 1)
    if prompt < 1:
        raise InputError("the prompt has no tokens")
    most = positions(model)
    if most is not None and not model.config.is_encoder_decoder and prompt + new > most:
        raise InputError(
            f"{prompt} tokens of prompt and {new} new ones do not fit the model's {most} positions"
        )
