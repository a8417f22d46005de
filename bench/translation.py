"""Binary codes of translators: quality, size, memory and speed; docs/results/translation.md.

    python bench/translation.py --work FOLDER [--data FOLDER] [--corpora multi30k,spa-eng]
                                [--seeds 1] [--train] [--only ARMS] [--write]

A new encoder–decoder is trained in float; from it, with the same steps each, models in binary
codes, and one more in float. With --train, what is missing in the work folder is trained, one after
another; what has finished stays, and a run that was broken off goes on from its last checkpoint.
Several processes may train in one work folder, none what another one is at; two of one thread
(OMP_NUM_THREADS=1) take 0.6 of the time of one with two. The table holds what has finished and
names what has not. All models translate the whole test set with the same search; their speeds are
taken in the same rounds. CTranslate2 is measured where it is installed, from the same float model.
"""

import argparse
import fcntl
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from apart import Apart
from ctranslate2_model import convert, load
from machine import described, finish, result_page
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from transformers import PreTrainedModel

import lowbit
from lowbit.checkpoint.atomic_write import staged, staged_file
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.footprint import footprint, resident_bytes
from lowbit.data import parallel
from lowbit.data.batches import by_length
from lowbit.data.parallel import ParallelData
from lowbit.decoding.translator import Translator
from lowbit.evaluation.peak import peak_bytes
from lowbit.evaluation.tasks.translation import corpus_scores
from lowbit.training.architecture import Architecture
from lowbit.training.bcq import BcqPlan, find_plan
from lowbit.training.lesson import Material, Pairs
from lowbit.training.settings import OF_TASK
from lowbit.training.train import train
from lowbit.training.translation import new_tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data" / "translation"
BATCHES = (1, 16)
SPEED_SENTENCES, ROUNDS = 100, 3
RESAMPLES = 1000
MEBI = 1 << 20
POLL_SECONDS = 20
SETTINGS = replace(OF_TASK["translation"], schedule="cosine", bf16=True)
FURTHER_LEARNING_RATE, DISTILL = 5e-4, 0.5
FLOAT = "float32"
PER_ROW = {"granularity": "channel"}
CONTROL, THREE_BITS = find_plan("bcq-reference", {}), find_plan("3", PER_ROW)


@dataclass(frozen=True)
class Arm:
    """Trained on from the float model: towards a plan, or in float. distill: the share of the loss
    that is the divergence from the model that it started from. times: as long as other arms.
    epochs: so many of the reference's in place of that, each as long as from one score to the
    next."""

    plan: BcqPlan | None
    distill: float = DISTILL
    times: int = 1
    epochs: int | None = None

    @property
    def folder(self) -> str:
        """Where `train` saves the model."""
        return "float" if self.plan is None else self.plan.recipe.name


# The control arm is the reference's own schedule, which learns from labels alone. That it loses
# for want of distillation, or others win by longer training, is seen from two arms more.
MIXED, LONGER = find_plan("bcq-mixed", {}), 3
REFERENCE_EPOCHS = 30  # of the reference's own training
ARMS = {
    "reference schedule, 3 bits": Arm(CONTROL, distill=0.0),
    "mixed": Arm(MIXED),
    "3 bits": Arm(THREE_BITS),
    "mixed, longer": Arm(MIXED, times=LONGER),
    "3 bits, longer": Arm(THREE_BITS, times=LONGER),
    "float32, trained on": Arm(None),
    "reference schedule, distilled": Arm(CONTROL),
    "reference schedule, 30 epochs": Arm(CONTROL, distill=0.0, epochs=REFERENCE_EPOCHS),
    "2 bits": Arm(find_plan("2", PER_ROW)),
    "mixed, clustered embeddings": Arm(find_plan("bcq-clustered", {})),
}
# The codes of an arm, with activations that are rounded to 8 bits as they come.
DYNAMIC = {
    f"{arm}, int8 activations": arm
    for arm in ("mixed", "3 bits", "mixed, longer", "3 bits, longer")
}
# What is made of the float model without training.
RECIPES = {
    "3 bits, no training": THREE_BITS.recipe,
    "int8": "int8-all-dynamic",
    "int4": "int4-all-dynamic",
}
# The float32 model by transformers' own code, to which speeds are compared.
GENERATE = "float32, transformers' generate"
PEERS = {"CTranslate2 float32": "float32", "CTranslate2 int8": "int8"}


@dataclass(frozen=True)
class Corpus:
    """Files under a folder: what is learned from, and the test set's. epochs: of the float model;
    further: of each arm. eval_steps: 0 for once an epoch."""

    data: str
    pairs: Pairs
    test: tuple[str, str | None]
    epochs: float
    further: float
    arms: tuple[str, ...] = tuple(ARMS)
    eval_steps: int = 0

    def under(self, folder: Path) -> "Corpus":
        def at(name: str | None) -> str | None:
            return None if name is None else str(folder / name)

        pairs = replace(
            self.pairs,
            target=at(self.pairs.target),
            valid=at(self.pairs.valid),
            valid_target=at(self.pairs.valid_target),
        )
        test = str(folder / self.test[0]), at(self.test[1])
        return replace(self, data=str(folder / self.data), pairs=pairs, test=test)


CORPORA = {
    "multi30k": Corpus(
        "train.de",
        Pairs("train.en", "val.de", "val.en"),
        ("test_2016_flickr.de", "test_2016_flickr.en"),
        epochs=10,
        further=2,
    ),
    "spa-eng": Corpus(
        "train.tsv",
        Pairs(valid="valid.tsv"),
        ("test.tsv", None),
        epochs=2,
        further=0.75,
        arms=(
            "reference schedule, 3 bits",
            "mixed",
            "float32, trained on",
            "reference schedule, 30 epochs",
        ),
        # The steps of one of the reference's epochs.
        eval_steps=810,
    ),
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

    @property
    def trained(self) -> tuple[str, ...]:
        """What is trained: the float model, then what starts from it."""
        return FLOAT, *self.corpus.arms

    @cached_property
    def test(self) -> ParallelData:
        found = parallel.read(*self.corpus.test)
        some = slice(self.given.sentences)
        return ParallelData(found.source, found.sources[some], found.targets[some])

    @property
    def float_folder(self) -> Path:
        return self.folder / FLOAT / "float"

    def model_folder(self, arm: str) -> Path:
        if arm == FLOAT:
            return self.float_folder
        return self.folder / arm / (ARMS[arm].folder if arm in ARMS else "model")

    def finished(self, arm: str) -> bool:
        """What is not trained is there as soon as the float model is."""
        arm = DYNAMIC.get(arm, arm)
        trained = arm if arm in self.trained else FLOAT
        return (self.folder / trained / "training.json").exists()

    def train(self, arm: str) -> None:
        given, corpus = self.given, self.corpus
        trial = given.max_steps
        settings = replace(
            SETTINGS,
            seed=self.seed,
            batch_size=given.batch_size,
            max_steps=trial,
            eval_steps=trial // 2 if trial else corpus.eval_steps,
        )
        start: str | Architecture = str(self.float_folder)
        if arm == FLOAT:
            start = Architecture(given.architecture, given.layers, given.width, 4 * given.width)
            tokenizer = new_tokenizer(corpus.data, corpus.pairs, given.vocabulary, given.max_length)
            settings = replace(settings, epochs=corpus.epochs)
        else:
            tokenizer = load_tokenizer(self.float_folder)
            settings = replace(
                settings,
                epochs=ARMS[arm].epochs or corpus.further * ARMS[arm].times,
                max_steps=trial or (ARMS[arm].epochs or 0) * corpus.eval_steps,
                learning_rate=FURTHER_LEARNING_RATE,
                plan=ARMS[arm].plan,
                distill=ARMS[arm].distill,
            )
        material = Material(
            start, tokenizer, corpus.data, max_length=given.max_length, pairs=corpus.pairs
        )
        train("translation", material, self.folder / arm, settings, resume=True)
        shutil.rmtree(self.folder / arm / "checkpoints")

    def make(self, arm: str) -> None:
        """The folder of a model that needs no training, where it is not there yet."""
        folder = self.model_folder(arm)
        if folder.exists():
            return
        with staged(folder) as unfinished:
            if arm in PEERS:
                convert(self.float_folder, unfinished, PEERS[arm])
                return
            if arm in DYNAMIC:
                with_dynamic_activations(self.model_folder(DYNAMIC[arm]), unfinished)
                return
            model, tokenizer = load_model(self.float_folder), load_tokenizer(self.float_folder)
            lowbit.quantize(model, RECIPES[arm])
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)

    def translator(self, arm: str) -> Callable[[Sequence[str], int], tuple[str, ...]]:
        """From sentences and the size of a batch to their translations."""
        tokenizer, beams = load_tokenizer(self.float_folder), self.given.beams
        if arm == GENERATE:
            return by_transformers(load_model(self.float_folder), tokenizer, beams)
        self.make(arm)
        if arm in PEERS:
            folder, most = self.model_folder(arm), self.given.max_length
            threads = torch.get_num_threads()
            return Apart(threads, load, folder, self.float_folder, PEERS[arm], beams, most)
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
            lines = "".join(f"{line}\n" for line in outputs)
            (self.folder / arm / "test.txt").write_text(lines, encoding="utf-8")
            with staged_file(kept) as unfinished:
                unfinished.write_text(json.dumps(told), encoding="utf-8")
        scores: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return scores

    def chances(self, arms: Sequence[str]) -> dict[str, float | None]:
        """How likely so large a change of BLEU from the first one's would be by chance: a paired
        bootstrap over the sentences (Koehn 2004), as sacrebleu has it."""
        outputs = [
            (arm, (self.folder / arm / "test.txt").read_text(encoding="utf-8").split("\n")[:-1])
            for arm in arms
        ]
        test = PairedTest(outputs, {"BLEU": BLEU()}, [list(self.test.targets)], "bs", RESAMPLES)
        _, found = test()
        first = outputs[0][1]
        return {
            arm: None if own == first else result.p_value
            for (arm, own), result in zip(outputs, found["BLEU"], strict=True)
        }

    def sizes(self, arm: str) -> dict[str, float | None]:
        """resident: what tensors take once the model has translated."""
        folder = self.model_folder(arm)
        if arm in PEERS:
            return {"disk": sum(file.stat().st_size for file in folder.iterdir())}
        model, tokenizer = load_model(folder), load_tokenizer(self.float_folder)
        size = footprint(model, folder)
        Translator(model, tokenizer, self.given.beams)(self.test.sources[:1], False)
        return {
            "bits": size.bits_per_weight,
            "disk": size.disk_bytes,
            "resident": resident_bytes(model),
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
        dynamic = (name for name, arm in DYNAMIC.items() if arm in self.trained)
        arms = [*self.trained, *dynamic, *RECIPES]
        if importlib.util.find_spec("ctranslate2") is not None:
            arms += PEERS
        done = [arm for arm in arms if self.finished(arm)]
        yield f"\n## {self.name}, seed {self.seed}: {len(self.test.sources):,} sentences\n"
        every = self.corpus.eval_steps
        yield f"{self.corpus.epochs:g} epochs in float, then {self.corpus.further:g} of each model"
        yield f"that is trained on; scored after each {f'{every} steps' if every else 'epoch'}.\n"
        if absent := [arm for arm in arms if arm not in done]:
            yield f"Not trained yet: {'; '.join(absent)}.\n"
        if not done:
            return
        scores = {arm: self.scored(arm) for arm in done}
        chances = self.chances(done)
        speeds = self.speeds([GENERATE, *done])
        base = scores[FLOAT]
        yield f"BLEU {base['bleu'][1]}; chrF {base['chrf'][1]}."
        theirs = " and ".join(f"{speeds[GENERATE, b]:,.0f} at batch {b}" for b in BATCHES)
        yield f"Tokens a second of {GENERATE}: {theirs}; × is beside these.\n"
        yield (
            "| | bits/weight | on disk, MiB | × smaller | in memory, × smaller | BLEU |"
            " change | p | chrF | peak memory, MiB |"
            + "".join(f" tokens/s, batch {b} | × |" for b in BATCHES)
        )
        yield "|---" * (10 + 2 * len(BATCHES)) + "|"
        for arm in done:
            row, bleu = scores[arm], scores[arm]["bleu"][0]
            resident = base["resident"] / row["resident"] if "resident" in row else None
            rates = (
                f" {speeds[arm, b]:,.0f} | {speeds[arm, b] / speeds[GENERATE, b]:.2f} |"
                for b in BATCHES
            )
            yield (
                f"| {arm} | {told(row.get('bits'))} | {told(row['disk'] / MEBI)} |"
                f" {told(base['disk'] / row['disk'])} | {told(resident)} | {bleu:.2f} |"
                f" {bleu - base['bleu'][0]:+.2f} | {told(chances[arm])} | {row['chrf'][0]:.2f} |"
                f" {told(row['peak'] / MEBI if row.get('peak') else None)} |" + "".join(rates)
            )


def by_transformers(
    model: PreTrainedModel, tokenizer: Any, beams: int
) -> Callable[[Sequence[str], int], tuple[str, ...]]:
    """The batches of a `Translator`, each by `model.generate`."""
    settings = {"num_beams": beams, "do_sample": False, "max_length": None}
    settings["max_new_tokens"] = Translator(model, tokenizer, beams).new_tokens

    def translate(sentences: Sequence[str], batch: int) -> tuple[str, ...]:
        outputs = [""] * len(sentences)
        lengths = [len(ids) for ids in tokenizer(list(sentences)).input_ids]
        for rows in by_length(lengths, batch):
            texts = [sentences[row] for row in rows]
            inputs = tokenizer(texts, padding=True, return_tensors="pt")
            names = ("input_ids", "attention_mask")
            tokens = model.generate(**{name: inputs[name] for name in names}, **settings)
            decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for row, text in zip(rows, decoded, strict=True):
                outputs[row] = text
        return tuple(outputs)

    return translate


def with_dynamic_activations(source: Path, folder: Path) -> None:
    """Write the model of `source` into `folder`, its codes as they are."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for entry in config["quantization_config"]["modules"].values():
        if "activations" in entry:
            entry["activations"] = "dynamic"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def told(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is at this folder; one that ends, however it does, leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def train_missing(runs: Sequence[Run], only: Sequence[str]) -> None:
    """One after another, what is not finished and no other process is at: float models first, then
    arm by arm, until all are finished."""
    wanted = [(run, arm) for arm in (FLOAT, *only) for run in runs if arm in run.trained]
    while missing := [(run, arm) for run, arm in wanted if not run.finished(arm)]:
        if not any(attempt(run, arm) for run, arm in missing):
            time.sleep(POLL_SECONDS)


def attempt(run: Run, arm: str) -> bool:
    """Train a model if its turn has come; whether it was."""
    if arm != FLOAT and not run.finished(FLOAT):
        return False
    with alone(run.folder / arm) as free:
        # It may have been finished since the caller looked.
        if not free or run.finished(arm):
            return False
        run.train(arm)
        return True


def page(runs: Sequence[Run], given: argparse.Namespace) -> Iterator[str]:
    yield from (
        "# Translation in binary codes",
        "",
        f"{given.architecture.capitalize()}: {given.layers} + {given.layers} layers of width"
        f" {given.width}, vocabulary {given.vocabulary:,}; trained with bfloat16 products, scored"
        " in float32;",
        "written by `bench/translation.py`. What is trained on learns by half from the float",
        "model's tokens (distillation), but for the reference schedule: that is greedy, per row,",
        "projected when it is scored, from labels alone; `30 epochs`: of the reference's own, each",
        "from one score to the next. `float32, trained on` has as many steps",
        f"more, without codes. `longer`: {LONGER} times as many. Sizes count everything: codes,",
        "scales, norms, biases, positions. In memory: the tensors of a model that has translated.",
        "Peak memory is that of a fresh process that loads the model and runs it once. p: how",
        "likely so large a change of BLEU is by chance, by a paired bootstrap. Search with",
        f"{given.beams} beam(s).",
        described(),
    )
    for run in runs:
        with torch.inference_mode():
            table = list(run.table())
        yield from table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", required=True)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--train", action="store_true", help="train what is missing")
    parser.add_argument("--only", default=";".join(ARMS), help="these arms alone, by semicolons")
    parser.add_argument("--max-steps", type=int, default=0, help="instead of epochs, for a trial")
    parser.add_argument("--sentences", type=int, help="so many of the test set, for a trial")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--architecture", default="marian")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=6000)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write docs/results/translation.md")
    given = parser.parse_args()
    only = given.only.split(";")
    if unknown := [arm for arm in only if arm not in ARMS]:
        parser.error(f"arm {unknown[0]!r} is unknown: use {'; '.join(ARMS)}")
    runs = [
        Run(name, int(seed), CORPORA[name].under(given.data / name), given)
        for seed in given.seeds.split(",")
        for name in given.corpora.split(",")
    ]
    if given.train:
        train_missing(runs, only)
    with alone(Path(given.work)) as free:
        # Whoever comes second would disturb the first one's times.
        if not free:
            print(f"another process measures what is in {given.work}")
            return
        finish(list(page(runs, given)), result_page("translation.md"), given.write)


if __name__ == "__main__":
    main()
