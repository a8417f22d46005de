"""Translation, or any text-to-text task: corpus BLEU and chrF by sacreBLEU (Post 2018).

BLEU decides, unless all targets are too short for it; then the share of equal lines decides. Beam
search keeps the best `beams` hypotheses; one beam is greedy. Decoding uses a KV cache, so a token
costs one step of the decoder.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from lowbit.data import parallel
from lowbit.data.parallel import ParallelData
from lowbit.decoding.translator import Translator
from lowbit.evaluation.study import Measurement, Metric, Sample
from lowbit.evaluation.task import Resampled, Subject, Task
from lowbit.extras import needed

SAMPLES = 5
# BLEU counts n-grams of up to four words; for single words, such as pronunciations, it is 0.
BLEU_WORDS = 4


@dataclass(frozen=True)
class Translation(Task):
    """data, target, source_column, target_column, split: as `lowbit.data.parallel.read` takes them.

    beams, max_new_tokens, batch_size, prefix: as `decoding.translator.Translator` takes them.
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
        self.translator(subject)
        needed("sacrebleu", "sacrebleu", "eval")
        _ = self.pairs

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        self.check(subject)
        translator = self.translator(subject)
        found = translator(self.pairs.sources, progress)
        targets = self.pairs.targets
        return Measurement(
            task=self.name,
            data=self.pairs.source,
            items=len(targets),
            unit="sentences",
            settings={
                "beams": self.beams,
                "max_new_tokens": translator.new_tokens,
                "prefix": self.prefix,
                "truncated": len(found.cut),
            },
            metrics=corpus_scores(found.outputs, targets),
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

    def resampled(self, found: Measurement) -> Resampled:
        """BLEU from the summed n-gram counts of the sentences (Papineni et al. 2002)."""
        targets, outputs = self.pairs.targets, tuple(map(str, found.predictions))
        if deciding_metric(targets) == "exact_match":
            same = np.array([a == b for a, b in zip(outputs, targets, strict=True)])
            return lambda rows: float(same[rows].mean())
        bleu = needed("sacrebleu.metrics", "sacrebleu", "eval").BLEU
        one = bleu(effective_order=True)
        counted = [one.sentence_score(a, [b]) for a, b in zip(outputs, targets, strict=True)]
        sums = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in counted])

        def score(rows: Int64[np.ndarray, " items"]) -> float:
            *words, length, wanted = sums[rows].sum(0).tolist()
            half = len(words) // 2
            whole = bleu.compute_bleu(words[:half], words[half:], length, wanted, "exp")
            return float(whole.score)

        return score

    def translator(self, subject: Subject) -> Translator:
        """The translator of a model. Raises UsageError if the model or an option does not fit."""
        return Translator(
            subject.model,
            subject.needed_tokenizer(),
            self.beams,
            self.max_new_tokens,
            self.batch_size,
            self.prefix,
        )


def corpus_scores(outputs: tuple[str, ...], targets: tuple[str, ...]) -> dict[str, Metric]:
    """The corpus scores of all outputs, the deciding metric first."""
    sacrebleu = needed("sacrebleu.metrics", "sacrebleu", "eval")

    def corpus(scorer: Any) -> Metric:
        score = scorer.corpus_score(list(outputs), [list(targets)]).score
        return Metric(float(score), "higher", str(scorer.get_signature()))

    same = sum(a == b for a, b in zip(outputs, targets, strict=True))
    exact = Metric(same / len(targets), "higher", "share of equal lines")
    chrf = corpus(sacrebleu.CHRF())
    if deciding_metric(targets) == "exact_match":
        return {"exact_match": exact, "chrf": chrf}
    return {"bleu": corpus(sacrebleu.BLEU()), "chrf": chrf, "exact_match": exact}


def deciding_metric(targets: tuple[str, ...]) -> str:
    """The metric that decides between two models; higher is better."""
    short = all(len(target.split()) < BLEU_WORDS for target in targets)
    return "exact_match" if short else "bleu"
