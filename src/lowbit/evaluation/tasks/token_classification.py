"""Labels of words: entities, parts of speech.

A word's label is that of its first token. If labels mark entities (B-PER, I-PER, O), the F1 of
whole entities over all kinds decides, as in CoNLL 2003; else the share of correct words.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from lowbit.data import tagged
from lowbit.data.batches import by_length, check_batch_size, check_padding, longest
from lowbit.data.tagged import TaggedData
from lowbit.data.word_tokens import WordTokens, word_labels, word_tokens
from lowbit.errors import InputError
from lowbit.evaluation.entity_score import entities, marks_entities
from lowbit.evaluation.heads import check_head
from lowbit.evaluation.study import Measurement, Metric, Sample
from lowbit.evaluation.task import Resampled, Subject, Task
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar

SAMPLES = 5


@dataclass(frozen=True)
class TokenClassification(Task):
    """data: as `lowbit.data.tagged.read` takes it. max_length: tokens of a sentence; by default all
    that the model has positions for. Predictions: of each sentence its labels, with blanks."""

    name = "token-classification"

    data: str
    split: str = "dev"
    batch_size: int = 32
    max_length: int | None = None

    @cached_property
    def items(self) -> TaggedData:
        return tagged.read(self.data, self.split)

    def check(self, subject: Subject) -> None:
        check_head(
            subject.model,
            MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
            "token classification",
            "token-classification",
        )
        check_batch_size(self.batch_size)
        tokenizer = subject.needed_tokenizer()
        check_padding(tokenizer, self.batch_size)
        longest(subject.model, tokenizer, self.max_length)
        known = set(subject.model.config.id2label.values())
        for first, labels in zip(self.items.lines, self.items.labels, strict=True):
            for line, label in enumerate(labels, first):
                if label not in known:
                    raise InputError(
                        f"{self.items.source}, line {line}: the model does not know the label"
                        f" {label!r}, only {', '.join(sorted(known))}"
                    )

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        self.check(subject)
        data = self.items
        most = longest(subject.model, subject.tokenizer, self.max_length)
        tokens = word_tokens(subject.needed_tokenizer(), data.words, most)
        found = self.predict(subject, tokens, progress)
        pairs = [*zip(found, data.labels, strict=True)]
        words = sum(map(len, data.labels))
        same = sum(a == b for row, wanted in pairs for a, b in zip(row, wanted, strict=True))
        metrics = {"accuracy": Metric(same / words, "higher", "of words")}
        if marks_entities(data.label_set):
            metrics = {**_of_entities(counts(pairs).sum(0)), **metrics}
        return Measurement(
            task=self.name,
            data=data.source,
            items=len(data.words),
            unit="sentences",
            settings={
                "split": self.split,
                "max_length": most,
                "words": words,
                "words_without_token": tokens.cut,
            },
            metrics=metrics,
            samples=tuple(
                Sample(" ".join(text), " ".join(row), " ".join(wanted))
                for text, (row, wanted) in zip(data.words, pairs[:SAMPLES], strict=False)
            ),
            predictions=tuple(" ".join(row) for row in found),
        )

    def resampled(self, found: Measurement) -> Resampled:
        pairs = [
            (tuple(str(row).split(" ")), wanted)
            for row, wanted in zip(found.predictions, self.items.labels, strict=True)
        ]
        if marks_entities(self.items.label_set):
            each = counts(pairs)
            return lambda rows: _of_entities(each[rows].sum(0))["f1"].value
        same = np.array([sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs])
        lengths = np.array([len(wanted) for _, wanted in pairs])
        return lambda rows: float(same[rows].sum() / lengths[rows].sum())

    def predict(
        self, subject: Subject, tokens: WordTokens, progress: bool = True
    ) -> list[tuple[str, ...]]:
        """A label for each word of each sentence; "O" for a word without a token. Raises
        InputError where the model's output is not finite."""
        tokenizer, model = subject.needed_tokenizer(), subject.model
        names = model.config.id2label
        found: list[tuple[str, ...]] = [()] * len(tokens.first)
        with evaluating(model), progress_bar(len(found), self.name, "sentence", progress) as bar:
            for batch in by_length(tokens.lengths, self.batch_size):
                inputs = tokenizer.pad(
                    {name: [rows[row] for row in batch] for name, rows in tokens.inputs.items()},
                    padding=len(batch) > 1,
                    return_tensors="pt",
                ).to(model.device)
                logits = model(**inputs).logits.float().cpu()
                # Padding may be on either side.
                real = inputs["attention_mask"].bool().cpu()
                if not torch.isfinite(logits[real]).all():
                    raise InputError(
                        f"{subject.name} computes logits on {self.data} that are not finite"
                    )
                best = logits.argmax(-1)
                for row, classes, mask in zip(batch, best, real, strict=True):
                    said = classes[mask].tolist()
                    found[row] = tuple(word_labels(said, tokens.first[row], names))
                bar.update(len(batch))
        return found


def counts(
    pairs: list[tuple[tuple[str, ...], tuple[str, ...]]],
) -> Int64[np.ndarray, "sentences 3"]:
    """For each sentence: the numbers of correct, predicted and true entities."""
    both = [(entities(found), entities(wanted)) for found, wanted in pairs]
    return np.array([[len(a & b), len(a), len(b)] for a, b in both])


def _of_entities(total: Int64[np.ndarray, " 3"]) -> dict[str, Metric]:
    """Precision, recall and F1; each is 0 if its denominator is 0."""
    right, found, wanted = map(int, total)
    return {
        "f1": Metric(2 * right / max(1, found + wanted), "higher", "of entities"),
        "precision": Metric(right / max(1, found), "higher"),
        "recall": Metric(right / max(1, wanted), "higher"),
    }
