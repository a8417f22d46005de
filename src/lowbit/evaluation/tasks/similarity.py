"""Semantic similarity of sentences by an encoder, without training for it.

    e(s) = mean over the tokens of s of the last hidden state        cos(e(s₁), e(s₂)) against STS-B

The correlation of the cosines with people's scores (Reimers & Gurevych 2019).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lowbit.data import glue
from lowbit.data.batches import Texts, check_batch_size, check_padding, longest
from lowbit.data.glue import GlueData
from lowbit.errors import InputError, UsageError
from lowbit.evaluation import scores
from lowbit.evaluation.study import Measurement, Sample
from lowbit.evaluation.task import Subject, Task
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar

METRICS = ("spearman", "pearson")
SAMPLES = 5


@dataclass(frozen=True)
class Similarity(Task):
    """data: GLUE's STS-B, as `lowbit.data.glue.read` takes it; None asks the hub. max_length:
    tokens of a sentence; by default all that the model has positions for."""

    name = "similarity"

    data: str | None
    split: str = "dev"
    batch_size: int = 32
    max_length: int | None = None

    @cached_property
    def pairs(self) -> GlueData:
        return glue.read("stsb", self.split, self.data)[0]

    def check(self, subject: Subject) -> None:
        check_batch_size(self.batch_size)
        model = subject.model
        if model.config.is_encoder_decoder or model.can_generate():
            raise UsageError(f"similarity needs an encoder, not {type(model).__name__}")
        check_padding(subject.needed_tokenizer(), self.batch_size)
        longest(model, subject.tokenizer, self.max_length)
        scores.check(METRICS)
        if self.pairs.labels is None:
            raise UsageError(f"{self.pairs.source} has no scores to compare with")

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        self.check(subject)
        labels, pairs = self.pairs.labels, self.pairs.sentences
        assert labels is not None
        sentences = list(dict.fromkeys(sentence for pair in pairs for sentence in pair))
        embeddings, truncated = self.embed(subject, sentences, progress)
        place = {sentence: row for row, sentence in enumerate(sentences)}
        first, second = (
            embeddings[[place[pair[side]] for pair in pairs]].double() for side in (0, 1)
        )
        cosines = cosine_similarity(first, second, dim=-1).tolist()
        return Measurement(
            task=self.name,
            data=self.pairs.source,
            items=len(pairs),
            unit="sentence pairs",
            settings={
                "split": self.split,
                "max_length": longest(subject.model, subject.tokenizer, self.max_length),
                "truncated": truncated,
            },
            metrics={name: scores.metric(name, cosines, labels) for name in METRICS},
            samples=tuple(
                Sample(" ‖ ".join(pair), f"{cosine:.3f}", f"{label:g}")
                for pair, cosine, label in zip(
                    pairs[:SAMPLES], cosines[:SAMPLES], labels[:SAMPLES], strict=True
                )
            ),
            predictions=tuple(cosines),
        )

    def embed(
        self, subject: Subject, sentences: list[str], progress: bool = True
    ) -> tuple[Float[Tensor, "sentences hidden"], int]:
        """The embeddings of the sentences, and the number of truncated ones. Raises InputError if
        the model's output is not finite."""
        tokenizer, model = subject.needed_tokenizer(), subject.model
        most = longest(model, tokenizer, self.max_length)
        texts = Texts([(sentence,) for sentence in sentences], tokenizer, most)
        rows: dict[int, Tensor] = {}
        count = len(sentences)
        with evaluating(model), progress_bar(count, self.name, "sentence", progress) as bar:
            for batch, inputs in texts.batches(self.batch_size):
                inputs.to(model.device)
                hidden = model.base_model(**inputs).last_hidden_state.float()
                mask = inputs["attention_mask"][..., None].float()
                means = ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu()
                if not torch.isfinite(means).all():
                    raise InputError(f"{subject.name} computes embeddings that are not finite")
                rows.update(zip(batch, means, strict=True))
                bar.update(len(batch))
        return torch.stack([rows[index] for index in range(count)]), texts.truncated
