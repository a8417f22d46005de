"""Teacher-forced loss: the prediction of each target token from the true tokens before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from lowbit.data.batches import by_length, longest
from lowbit.errors import InputError
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar

IGNORED = -100  # transformers' label for positions that do not count


@dataclass(frozen=True)
class Forced:
    """loss: mean −log p of a token, in nats. accuracy: share of tokens that are the most probable.
    tokens: the number of target tokens, including ends, without padding."""

    loss: float
    accuracy: float
    tokens: int


class PairCollator(DataCollatorForSeq2Seq):
    """transformers' batches of sources and targets. It gives a decoder its inputs only if the model
    has a method for that. Other models make them from the labels, and lack them where the loss is
    computed outside."""

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        batch = super().__call__(features, return_tensors)
        if "decoder_input_ids" not in batch:
            config, labels = self.model.config, batch["labels"]
            shifted = labels.roll(1, 1)
            shifted[:, 0] = config.decoder_start_token_id
            batch["decoder_input_ids"] = shifted.where(shifted != IGNORED, config.pad_token_id)
        return batch


def forced(
    model: PreTrainedModel,
    tokenizer: Any,
    sources: Sequence[str],
    targets: Sequence[str],
    batch_size: int = 32,
    progress: bool = True,
) -> Forced:
    """The teacher-forced loss of an encoder–decoder on pairs of sources and targets. Pairs with an
    empty side are left out; long texts are truncated. Raises InputError if no pair is left."""
    pairs = [(s, t) for s, t in zip(sources, targets, strict=True) if s.strip() and t.strip()]
    if not pairs:
        raise InputError(f"none of the {len(sources)} pairs has text on both sides")
    most = longest(model, tokenizer, None)
    limits = {} if most is None else {"truncation": True, "max_length": most}
    rows = encoded(tokenizer, [s for s, _ in pairs], [t for _, t in pairs], **limits)
    collate = PairCollator(tokenizer, model=model)
    loss, right, tokens = 0.0, 0, 0
    lengths = [len(row["labels"]) for row in rows]
    with evaluating(model), progress_bar(len(rows), "loss", "pair", progress) as bar:
        for batch in by_length(lengths, batch_size):
            inputs = collate([rows[index] for index in batch]).to(model.device)
            labels: Tensor = inputs.pop("labels")
            logits = model(**inputs).logits
            each = F.cross_entropy(
                logits.float().flatten(0, 1),
                labels.flatten(),
                ignore_index=IGNORED,
                reduction="none",
            )
            loss += each.double().sum().item()
            right += int((logits.argmax(-1) == labels).sum())
            tokens += int((labels != IGNORED).sum())
            bar.update(len(batch))
    return Forced(loss / tokens, right / tokens, tokens)


def encoded(
    tokenizer: Any, sources: Sequence[str], targets: Sequence[str], **limits: Any
) -> list[dict[str, list[int]]]:
    """Ids and mask of each source, and ids of its target as labels."""
    inputs = tokenizer(list(sources), verbose=False, **limits)
    labels = tokenizer(text_target=list(targets), verbose=False, **limits).input_ids
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": target}
        for ids, mask, target in zip(inputs.input_ids, inputs.attention_mask, labels, strict=True)
    ]
