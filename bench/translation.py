"""Binary codes of translators: quality, size, memory and speed; docs/results/translation.md.

    python bench/translation.py --work FOLDER [--data FOLDER] [--corpora multi30k,spa-eng]
                                [--seeds 1] [--train] [--write]

A new encoder–decoder is trained in float; from it, with the same steps each, models in binary
codes. With --train, what is missing in the work folder is trained, one after another; what has
finished stays, and a run that was broken off goes on from its last checkpoint. The table holds what
has finished and names what has not. All models translate the whole test set with the same search;
their speeds are taken in the same rounds. CTranslate2 is measured where it is installed, from the
same float model.
"""

import argparse
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ctranslate2_model import convert, load
from machine import described, finish, result_page

import lowbit
from lowbit.accounting import footprint
from lowbit.data import parallel
from lowbit.data.parallel import ParallelData
from lowbit.evaluation.peak import peak_bytes
from lowbit.evaluation.tasks.translation import corpus_scores
from lowbit.loading import load_model, load_tokenizer
from lowbit.training.architecture import Architecture
from lowbit.training.bcq import Plan, find_plan
from lowbit.training.lesson import Material, Pairs
from lowbit.training.settings import OF_TASK
from lowbit.training.train import train
from lowbit.training.translation import new_tokenizer
from lowbit.translator import Translator

SHARED = Path(__file__).parents[2] / "shared" / "data" / "translation"
BATCHES = (1, 16)
SPEED_SENTENCES, ROUNDS = 100, 3
MEBI = 1 << 20
BCQ_LEARNING_RATE, DISTILL = 5e-4, 0.5
PER_ROW = {"granularity": "channel"}
# What is trained from the float model, and towards what.
PLANS: dict[str, Plan] = {
    "reference schedule, 3 bits": find_plan("bcq-reference", {}),
    "3 bits": find_plan("3", PER_ROW),
    "mixed": find_plan("bcq-mixed", {}),
    "2 bits": find_plan("2", PER_ROW),
}
# What is made of the float model without training.
RECIPES = {
    "3 bits, no training": PLANS["3 bits"].recipe,
    "int8": "int8-all-dynamic",
    "int4": "int4-all-dynamic",
}
PEERS = {"CTranslate2 float32": "float32", "CTranslate2 int8": "int8"}
EVERYWHERE = {"multi30k": (*PLANS, *RECIPES, *PEERS)}
ARMS = {"spa-eng": ("reference schedule, 3 bits", "mixed", *RECIPES, *PEERS), **EVERYWHERE}


@dataclass(frozen=True)
class Corpus:
    """Files under a folder: what is learned from, and the test set's."""

    data: str
    pairs: Pairs
    test: tuple[str, str | None]

    def under(self, folder: Path) -> "Corpus":
        def at(name: str | None) -> str | None:
            return None if name is None else str(folder / name)

        pairs = replace(
            self.pairs,
            target=at(self.pairs.target),
            valid=at(self.pairs.valid),
            valid_target=at(self.pairs.valid_target),
        )
        return Corpus(
            str(folder / self.data), pairs, (str(folder / self.test[0]), at(self.test[1]))
        )


CORPORA = {
    "multi30k": Corpus(
        "train.de",
        Pairs("train.en", "val.de", "val.en"),
        ("test_2016_flickr.de", "test_2016_flickr.en"),
    ),
    "spa-eng": Corpus("train.tsv", Pairs(valid="valid.tsv"), ("test.tsv", None)),
}


@dataclass(frozen=True)
class Run:
    """All models of one corpus and seed."""

    name: str
    seed: int
    corpus: Corpus
    given: argparse.Namespace

    @property
    def folder(self) -> Path:
        return Path(self.given.work) / self.name / f"seed-{self.seed}"

    @cached_property
    def test(self) -> ParallelData:
        found = parallel.read(*self.corpus.test)
        some = slice(self.given.sentences)
        return ParallelData(found.source, found.sources[some], found.targets[some])

    @property
    def float_folder(self) -> Path:
        return self.folder / "float32" / "float"

    def model_folder(self, arm: str) -> Path:
        if arm == "float32":
            return self.float_folder
        if arm in PLANS:
            return self.folder / arm / PLANS[arm].recipe.name
        return self.folder / arm / "model"

    def finished(self, arm: str) -> bool:
        if arm in PLANS or arm == "float32":
            return (self.folder / arm / "training.json").exists()
        return self.finished("float32")

    def train(self, arm: str) -> None:
        given = self.given
        settings = replace(
            OF_TASK["translation"], seed=self.seed, batch_size=given.batch_size, bf16=given.bf16
        )
        data, pairs, length = self.corpus.data, self.corpus.pairs, given.max_length
        start: str | Architecture = str(self.float_folder)
        if arm == "float32":
            start = Architecture(given.architecture, given.layers, given.width, 4 * given.width)
            tokenizer = new_tokenizer(data, pairs, given.vocabulary, length)
            settings = replace(settings, epochs=given.epochs, max_steps=given.max_steps)
        else:
            plan = PLANS[arm]
            if plan.every and given.max_steps:
                plan = replace(plan, every=min(plan.every, max(1, given.max_steps // 4)))
            tokenizer = load_tokenizer(self.float_folder)
            settings = replace(
                settings,
                plan=plan,
                # The control arm learns from labels alone.
                distill=DISTILL if plan.straight else 0.0,
                epochs=given.bcq_epochs,
                max_steps=given.max_steps,
                learning_rate=BCQ_LEARNING_RATE,
            )
        material = Material(start, tokenizer, data, max_length=length, pairs=pairs)
        train("translation", material, self.folder / arm, settings, resume=True)
        shutil.rmtree(self.folder / arm / "checkpoints")

    def make(self, arm: str) -> None:
        """The folder of a model that needs no training, where it is not there yet."""
        folder = self.model_folder(arm)
        if folder.exists() or self.finished(arm) and arm in (*PLANS, "float32"):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        if arm in PEERS:
            convert(self.float_folder, folder, PEERS[arm])
            return
        model, tokenizer = load_model(self.float_folder), load_tokenizer(self.float_folder)
        lowbit.quantize(model, RECIPES[arm])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def translator(self, arm: str) -> Callable[[Sequence[str], int], tuple[str, ...]]:
        """From sentences and the size of a batch to their translations."""
        self.make(arm)
        tokenizer, beams = load_tokenizer(self.float_folder), self.given.beams
        if arm in PEERS:
            return load(self.model_folder(arm), tokenizer, PEERS[arm], beams, self.given.max_length)
        model = load_model(self.model_folder(arm))

        def translate(sentences: Sequence[str], batch: int) -> tuple[str, ...]:
            return Translator(model, tokenizer, beams, None, batch)(sentences, False).outputs

        return translate

    def scored(self, arm: str) -> dict[str, Any]:
        """Scores and sizes, kept once they are found."""
        kept = self.folder / arm / f"scores-{self.given.beams}-{self.given.sentences}.json"
        if not kept.exists():
            outputs = self.translator(arm)(self.test.sources, 32)
            found = corpus_scores(outputs, self.test.targets)
            told: dict[str, Any] = {name: [m.value, m.note] for name, m in found.items()}
            told |= self.sizes(arm)
            kept.write_text(json.dumps(told), encoding="utf-8")
            (self.folder / arm / "test.txt").write_text(
                "".join(f"{line}\n" for line in outputs), encoding="utf-8"
            )
        scores: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return scores

    def sizes(self, arm: str) -> dict[str, float | None]:
        folder = self.model_folder(arm)
        if arm in PEERS:
            return {"disk": sum(file.stat().st_size for file in folder.iterdir())}
        size = footprint(load_model(folder))
        disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return {
            "bits": size.bits_per_weight,
            "disk": disk,
            "weights": size.stored_bytes,
            "peak": peak_bytes(folder),
        }

    def speeds(self, arms: Sequence[str]) -> dict[tuple[str, int], float]:
        """Written tokens a second, by arm and batch: medians of rounds in which each has a turn."""
        tokenizer, some = load_tokenizer(self.float_folder), self.test.sources[:SPEED_SENTENCES]
        translators = {arm: self.translator(arm) for arm in arms}
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS + 1):
            for arm, translate in translators.items():
                for batch in BATCHES:
                    start = time.perf_counter()
                    outputs = translate(some, batch)
                    seconds = time.perf_counter() - start
                    tokens = sum(len(ids) for ids in tokenizer(list(outputs)).input_ids)
                    found.setdefault((arm, batch), []).append(tokens / seconds)
        # The first round warms up.
        return {key: statistics.median(values[1:]) for key, values in found.items()}

    def table(self) -> Iterator[str]:
        arms = ["float32", *ARMS[self.name]]
        if importlib.util.find_spec("ctranslate2") is None:
            arms = [arm for arm in arms if arm not in PEERS]
        done = [arm for arm in arms if self.finished(arm)]
        yield f"\n## {self.name}, seed {self.seed}: {len(self.test.sources):,} sentences\n"
        if absent := [arm for arm in arms if arm not in done]:
            yield f"Not trained yet: {'; '.join(absent)}.\n"
        if not done:
            return
        scores, speeds = {arm: self.scored(arm) for arm in done}, self.speeds(done)
        base = scores["float32"]
        yield f"BLEU {base['bleu'][1]}; chrF {base['chrf'][1]}.\n"
        yield (
            "| | bits/weight | on disk, MiB | × smaller | weights in memory, × smaller | BLEU |"
            " change | chrF | peak memory, MiB |"
            + "".join(f" tokens/s, batch {b} | × |" for b in BATCHES)
        )
        yield "|---" * (9 + 2 * len(BATCHES)) + "|"
        for arm in done:
            row, bleu = scores[arm], scores[arm]["bleu"][0]
            weights = base["weights"] / row["weights"] if "weights" in row else None
            rates = (
                f" {speeds[arm, b]:,.0f} | {speeds[arm, b] / speeds['float32', b]:.2f} |"
                for b in BATCHES
            )
            yield (
                f"| {arm} | {told(row.get('bits'))} | {told(row['disk'] / MEBI)} |"
                f" {told(base['disk'] / row['disk'])} | {told(weights)} | {bleu:.2f} |"
                f" {bleu - base['bleu'][0]:+.2f} | {row['chrf'][0]:.2f} |"
                f" {told(row['peak'] / MEBI if row.get('peak') else None)} |" + "".join(rates)
            )


def told(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", required=True)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--corpora", default="multi30k,spa-eng")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--train", action="store_true", help="train what is missing")
    parser.add_argument("--epochs", type=float, default=12, help="of the float model")
    parser.add_argument("--bcq-epochs", type=float, default=8, help="of each model in codes")
    parser.add_argument("--max-steps", type=int, default=0, help="instead of epochs, for a trial")
    parser.add_argument("--sentences", type=int, help="so many of the test set, for a trial")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--architecture", default="marian")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=6000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--write", action="store_true", help="write docs/results/translation.md")
    given = parser.parse_args()
    runs = [
        Run(name, int(seed), CORPORA[name].under(given.data / name), given)
        for seed in given.seeds.split(",")
        for name in given.corpora.split(",")
    ]
    if given.train:
        for run in runs:
            for arm in ("float32", *(arm for arm in ARMS[run.name] if arm in PLANS)):
                if not run.finished(arm):
                    run.train(arm)
    lines = [
        "# Translation in binary codes",
        "",
        f"{given.architecture.capitalize()}: {given.layers} + {given.layers} layers of width"
        f" {given.width}, vocabulary {given.vocabulary:,}; {given.epochs:g} epochs in float, then"
        f" {given.bcq_epochs:g} for each model in codes; written by `bench/translation.py`. Sizes",
        "count everything: codes, scales, norms, biases, positions. Peak memory is that of a fresh",
        f"process that loads the model and runs it once. Search with {given.beams} beam(s).",
        described(),
    ]
    for run in runs:
        with torch.inference_mode():
            lines += run.table()
    finish(lines, result_page("translation.md"), given.write)


if __name__ == "__main__":
    main()
