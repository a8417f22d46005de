"""Translation: each token of the target from the source and the target's tokens before it."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from lowbit.data import parallel
from lowbit.data.parallel import ParallelData
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.study import Measurement, Metric
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.translation import Translation, deciding_metric
from lowbit.evaluation.teacher_forcing import PairCollator, encoded, forced
from lowbit.nn.eval_mode import positions
from lowbit.training.architecture import Architecture, new_model
from lowbit.training.lesson import Lesson, Loaded, Material, Pairs, load_with_head
from lowbit.training.subwords import train_tokenizer


@dataclass(frozen=True)
class LearnedTranslation(Translation):
    """Scored by what it writes, and by the loss and masked accuracy of the references' tokens."""

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        found = super().measure(subject, progress)
        tokens = forced(
            subject.model,
            subject.needed_tokenizer(),
            self.pairs.sources,
            self.pairs.targets,
            self.batch_size,
            progress,
        )
        note = f"of {tokens.tokens:,} tokens, after those of the reference"
        learned = {
            "loss": Metric(tokens.loss, "lower", f"nats, {note}"),
            "accuracy": Metric(tokens.accuracy, "higher", note),
        }
        return replace(found, metrics={**found.metrics, **learned})


def teach(material: Material) -> Lesson:
    """data and pairs: what is read, as `read_pairs` says. Raises UsageError, InputError."""
    train = read_pairs(material.data, material.pairs)
    files = material.pairs
    score = LearnedTranslation(
        files.valid or str(material.data),
        target=files.valid_target,
        source_column=files.source_column,
        target_column=files.target_column,
        split="valid",
    )
    test = None
    if files.test or _has_test(str(material.data)):
        test = Translation(
            files.test or str(material.data),
            target=files.test_target,
            source_column=files.source_column,
            target_column=files.target_column,
        )
    if isinstance(material.model, Architecture):
        model = new_model(material.model, material.tokenizer, material.attention_dropout)
        loaded = Loaded(model, tuple(name for name, _ in model.named_parameters()))
    else:
        loaded = load_with_head(
            AutoModelForSeq2SeqLM, material, trained_for={"task": "translation"}
        )
    model = loaded.model
    longest = min(material.max_length, positions(model) or material.max_length)
    rows = encoded(material.tokenizer, train.sources, train.targets)
    both = zip(train.sources, train.targets, strict=True)
    empty = [not (source.strip() and target.strip()) for source, target in both]
    examples = [
        row
        for row, is_empty in zip(rows, empty, strict=True)
        if not is_empty and max(len(row["input_ids"]), len(row["labels"])) <= longest
    ]
    return Lesson(
        model,
        material.tokenizer,
        examples,
        PairCollator(material.tokenizer, model=model),
        score,
        best=deciding_metric(score.pairs.targets),
        new=loaded.new,
        notes=_left_out(len(rows), len(examples), sum(empty), longest),
        texts={"sources": score.pairs.sources, "references": score.pairs.targets},
        test=test,
        test_references=() if test is None else test.pairs.targets,
        accuracy=True,
    )


def _has_test(data: str) -> bool:
    """Whether the folder, or the dataset of the hub, has pairs that nothing is learned from."""
    if Path(data).exists():
        return Path(data, "test.tsv").is_file()
    try:
        return bool(parallel.read(data, split="test").targets)
    except InputError:
        return False


def read_pairs(data: str | None, files: Pairs) -> ParallelData:
    """What is learned from: `data` is a folder with train.tsv and valid.tsv, a dataset of the hub,
    a TSV file, or the sources of two files of lines. Raises UsageError, InputError."""
    if data is None:
        raise UsageError(
            "translation needs --data: a folder with train.tsv and valid.tsv, a file, …"
        )
    if files.valid is not None and Path(data).resolve() == Path(files.valid).resolve():
        raise UsageError(f"{data} is learned from and scored on: give another file as --valid")
    if files.valid is None and Path(data).is_file():
        raise UsageError(f"{data} is one file: --valid names the one that the model is scored on")
    for scored, target in ((files.valid, files.valid_target), (files.test, files.test_target)):
        if (files.target is None) != (target is None) and scored is not None:
            raise UsageError(
                "give two files for scoring if training has two (--valid, --valid-target), else one"
            )
    return parallel.read(
        data, files.target, files.source_column, files.target_column, split="train"
    )


def new_tokenizer(
    data: str | None, files: Pairs, vocabulary: int, max_length: int
) -> PreTrainedTokenizerBase:
    """One vocabulary for both languages, from what is learned from."""
    train = read_pairs(data, files)
    return train_tokenizer([*train.sources, *train.targets], vocabulary, max_length)


def _left_out(pairs: int, kept: int, empty: int, max_length: int) -> tuple[str, ...]:
    """What is said of pairs that are not learned from."""
    long = pairs - kept - empty
    reasons = {f"an empty side: {empty:,}": empty, f"more than {max_length} tokens: {long:,}": long}
    return tuple(f"pairs left out of {pairs:,} for {why}" for why, n in reasons.items() if n)
