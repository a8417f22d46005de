"""Translation, or any text from text: corpus BLEU and chrF as sacreBLEU computes them (Post 2018).

BLEU decides, except between targets all too short for it, where the share of equal lines does.
Beam search keeps the best of `beams` hypotheses; one beam is greedy. Decoding is cached, so that a
token costs one step of the decoder.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lowbit.data import parallel
from lowbit.data.parallel import ParallelData
from lowbit.errors import UsageError
from lowbit.evaluation.batches import by_length, check_batch_size, longest
from lowbit.evaluation.study import Measurement, Metric, Sample
from lowbit.evaluation.task import Subject, Task
from lowbit.extras import needed
from lowbit.mode import evaluating, positions
from lowbit.progress import progress_bar

SAMPLES = 5
# What an output may have by default. A model that is broken seldom ends a sentence, and would
# otherwise write until its positions end.
MOST_NEW_TOKENS = 256
# BLEU counts runs of up to four words; of single words, such as pronunciations, it is always 0.
BLEU_WORDS = 4


@dataclass(frozen=True)
class Translations:
    """In the order of the sources; `truncated` of them were cut to the model's positions."""

    outputs: tuple[str, ...]
    truncated: int


@dataclass(frozen=True)
class Translation(Task):
    """data, target, source_column, target_column, split: as `lowbit.data.parallel.read` takes them.

    max_new_tokens: of an output; by default 256 or the model's positions, if fewer. prefix: put
    before each source, as T5 is told what to do.
    """

    name = "translation"

    data: str
    target: str | None = None
    beams: int = 1
    max_new_tokens: int | None = None
    batch_size: int = 32
    source_column: int = 1
    target_column: int | None = None
    split: str = "test"
    prefix: str = ""

    @cached_property
    def pairs(self) -> ParallelData:
        return parallel.read(
            self.data, self.target, self.source_column, self.target_column, self.split
        )

    def check(self, subject: Subject) -> None:
        self._check_model(subject)
        needed("sacrebleu", "sacrebleu", "eval")
        _ = self.pairs

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        self.check(subject)
        found = self.translate(subject, self.pairs.sources, progress)
        targets = self.pairs.targets
        return Measurement(
            task=self.name,
            data=self.pairs.source,
            items=len(targets),
            unit="sentences",
            settings={
                "beams": self.beams,
                "max_new_tokens": self._new_tokens(subject.model),
                "prefix": self.prefix,
                "truncated": found.truncated,
            },
            metrics=_metrics(found.outputs, targets),
            samples=tuple(
                Sample(source, output, target)
                for source, output, target in zip(
                    self.pairs.sources[:SAMPLES],
                    found.outputs[:SAMPLES],
                    targets[:SAMPLES],
                    strict=True,
                )
            ),
            predictions=found.outputs,
        )

    def translate(
        self, subject: Subject, sources: tuple[str, ...], progress: bool = True
    ) -> Translations:
        """The model's output for each source; an empty one gives an empty one, without the model.

        Of the tokenizer only calls with texts and `batch_decode` are used. Raises UsageError.
        """
        self._check_model(subject)
        tokenizer, model = subject.needed_tokenizer(), subject.model
        most = longest(model, tokenizer, None)
        config = self._generation(model)
        written = [index for index, source in enumerate(sources) if source.strip()]
        texts = [self.prefix + sources[index] for index in written]
        lengths = [
            length
            for start in range(0, len(texts), self.batch_size)
            for length in _lengths(_encode(tokenizer, texts[start : start + self.batch_size]))
        ]
        outputs = [""] * len(sources)
        with evaluating(model), progress_bar(len(texts), self.name, "sentence", progress) as bar:
            for batch in by_length(lengths, self.batch_size):
                is_cut = most is not None and lengths[batch[0]] > most
                limits = {"truncation": True, "max_length": most} if is_cut else {}
                inputs = _encode(tokenizer, [texts[index] for index in batch], **limits)
                tokens = model.generate(
                    **{name: tensor.to(model.device) for name, tensor in inputs.items()},
                    generation_config=config,
                )
                decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True)
                for index, text in zip(batch, decoded, strict=True):
                    outputs[written[index]] = text
                bar.update(len(batch))
        truncated = 0 if most is None else sum(length > most for length in lengths)
        return Translations(tuple(outputs), truncated)

    def _check_model(self, subject: Subject) -> None:
        model = subject.model
        if not model.config.is_encoder_decoder or not model.can_generate():
            raise UsageError(
                f"translation needs an encoder–decoder that generates, not {type(model).__name__}"
            )
        check_batch_size(self.batch_size)
        if self.beams < 1:
            raise UsageError(f"{self.beams} beams are none: 1 is greedy search")
        self._new_tokens(model)
        subject.needed_tokenizer()

    def _new_tokens(self, model: PreTrainedModel) -> int:
        """Raises UsageError where more are wanted than the decoder has positions for."""
        most = positions(model)
        # The token that starts decoding takes one.
        room = None if most is None else most - 1
        if self.max_new_tokens is None:
            return MOST_NEW_TOKENS if room is None else min(MOST_NEW_TOKENS, room)
        if self.max_new_tokens < 1:
            raise UsageError(f"{self.max_new_tokens} new tokens are none: at least 1 is needed")
        if room is not None and self.max_new_tokens > room:
            raise UsageError(
                f"{self.max_new_tokens} new tokens do not fit the decoder's {most} positions,"
                " of which one starts it"
            )
        return self.max_new_tokens

    def _generation(self, model: PreTrainedModel) -> GenerationConfig:
        """The model's own, length penalty and all, but never sampled."""
        config = deepcopy(model.generation_config)
        config.update(
            do_sample=False,
            num_beams=self.beams,
            max_new_tokens=self._new_tokens(model),
            max_length=None,
            use_cache=True,
        )
        return config


def _encode(tokenizer: Any, texts: list[str], **limits: Any) -> dict[str, Tensor]:
    """Ids and mask; what else tokenizers return, `generate` would refuse."""
    encoded: Mapping[str, Tensor] = tokenizer(texts, padding=True, return_tensors="pt", **limits)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _lengths(inputs: dict[str, Tensor]) -> list[int]:
    lengths: list[int] = inputs["attention_mask"].sum(1).tolist()
    return lengths


def _metrics(outputs: tuple[str, ...], targets: tuple[str, ...]) -> dict[str, Metric]:
    sacrebleu = needed("sacrebleu.metrics", "sacrebleu", "eval")

    def corpus(scorer: Any) -> Metric:
        score = scorer.corpus_score(list(outputs), [list(targets)]).score
        return Metric(float(score), "higher", str(scorer.get_signature()))

    same = sum(a == b for a, b in zip(outputs, targets, strict=True))
    exact = Metric(same / len(targets), "higher", "share of equal lines")
    chrf = corpus(sacrebleu.CHRF())
    if all(len(target.split()) < BLEU_WORDS for target in targets):
        return {"exact_match": exact, "chrf": chrf}
    return {"bleu": corpus(sacrebleu.BLEU()), "chrf": chrf, "exact_match": exact}
