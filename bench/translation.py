"""Binary codes of translators: quality, size, memory and speed; docs/results/translation.md.

    python bench/translation.py --work FOLDER [--data FOLDER] [--corpora multi30k,spa-eng]
                                [--seeds 1] [--train] [--only ARMS] [--speed] [--write]

A new encoder–decoder is trained in float; from it, with the same steps each, models in binary
codes, and one more in float. The page is rendered from docs/results/translation.jsonl, which holds
what has been scored, and names what has not. With --train, what is missing there is trained, one
after another, and scored; a run that was broken off goes on from its last checkpoint in the work
folder, and any machine goes on from the rows of others. If the float model is not in the work
folder, it is trained again with the same seed. A GPU is used if there is one (CUDA_VISIBLE_DEVICES=
leaves it alone). Several processes may train in one work folder, none what another one is at; two
of one thread (OMP_NUM_THREADS=1) take 0.6 of the time of one with two. All models translate the
whole test set with the same search. With --speed, those that have no times are timed in the same
rounds, which wants a quiet machine. CTranslate2 is measured where it is installed, from the same
float model.
"""

import argparse
import fcntl
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import beside
import torch
from apart import Apart
from ctranslate2_model import convert, load
from machine import finish, result_page
from pieces import Pieces
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
from lowbit.training.settings import Settings
from lowbit.training.train import train
from lowbit.training.translation import new_tokenizer
from lowbit.training.usual import OF_TASK

SHARED = Path(__file__).parents[2] / "shared" / "data" / "translation"
BATCHES = (1, 16)
SPEED_SENTENCES, ROUNDS = 100, 3
RESAMPLES = 1000
MEBI = 1 << 20
POLL_SECONDS = 20
PAGE = "translation.md"
SETTINGS = replace(Settings(**asdict(OF_TASK["translation"])), schedule="cosine", bf16=True)
FURTHER_LEARNING_RATE, DISTILL = 5e-4, 0.5
FLOAT = "float32"
PER_ROW = {"granularity": "channel"}
CONTROL, THREE_BITS = find_plan("bcq-reference", {}), find_plan("3", PER_ROW)


# From sentences and the size of a batch to their translations.
Translate = Callable[[Sequence[str], int], tuple[str, ...]]


@dataclass(frozen=True)
class Arm:
    """Trained on from a float model: towards a plan, or in float. distill: the share of the loss
    that is the divergence from the model that it started from. times: as long as other arms.
    epochs: so many of the reference's in place of that, each as long as from one score to the
    next. start: the arm of the float model."""

    plan: BcqPlan | None
    distill: float = DISTILL
    times: int = 1
    epochs: int | None = None
    start: str = FLOAT

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
    "float32, longer": Arm(None, times=LONGER),
    "mixed, from longer float32": Arm(MIXED, times=LONGER, start="float32, longer"),
    "float32, twice longer": Arm(None, times=LONGER, start="float32, longer"),
    "reference schedule, distilled": Arm(CONTROL),
    "reference schedule, 30 epochs": Arm(CONTROL, distill=0.0, epochs=REFERENCE_EPOCHS),
    "2 bits": Arm(find_plan("2", PER_ROW)),
    "mixed, clustered embeddings": Arm(find_plan("bcq-clustered", {})),
}
# The codes of an arm, with activations that are rounded to 8 bits as they come.
DYNAMIC = {
    f"{arm}, int8 activations": arm
    for arm in ("mixed", "3 bits", "mixed, longer", "3 bits, longer", "mixed, from longer float32")
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
    arms: tuple[str, ...] = tuple(name for name, arm in ARMS.items() if arm.start == FLOAT)
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
            "mixed, longer",
            "float32, trained on",
            "float32, longer",
            "mixed, from longer float32",
            "float32, twice longer",
            "reference schedule, 30 epochs",
        ),
        # The steps of one of the reference's epochs.
        eval_steps=810,
    ),
}


@dataclass(frozen=True)
class Row:
    """What the table says of a model. Sizes are in MiB; smaller, resident_smaller: how many times
    smaller than the float model, on disk and in memory. before: BLEU of the float model that it
    started from; p: how likely so large a change would be by chance, None for the same outputs.
    notes: how BLEU and chrF were computed; sentences: of the test set."""

    bleu: float
    chrf: float
    before: float
    p: float | None
    bits: float | None
    disk: float
    smaller: float
    resident_smaller: float | None
    peak: float | None
    notes: list[str]
    sentences: int


@dataclass(frozen=True)
class Run:
    """All models of one corpus and seed. rows: what is known of them; `work` has the models."""

    name: str
    seed: int
    corpus: Corpus
    given: argparse.Namespace
    rows: Pieces

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

    @property
    def arms(self) -> list[str]:
        """All models, in the order of the table."""
        dynamic = (name for name, arm in DYNAMIC.items() if arm in self.trained)
        arms = [*self.trained, *dynamic, *RECIPES]
        installed = importlib.util.find_spec("ctranslate2") is not None
        return arms + [arm for arm in PEERS if installed or self.known(arm)]

    def piece(self, arm: str) -> str:
        return f"{self.name} {self.seed} {arm}"

    def timing(self, arm: str) -> str:
        """The piece that holds its times."""
        return f"{self.piece(arm)}: speed"

    def known(self, arm: str) -> bool:
        return self.piece(arm) in self.rows.found

    def wanted(self, arm: str) -> bool:
        """Whether it is to be trained."""
        return arm in self.trained and not self.known(arm) and not self.finished(arm)

    def finished(self, arm: str) -> bool:
        """Whether the work folder has it. What is not trained is there as soon as the float model
        is."""
        arm = DYNAMIC.get(arm, arm)
        trained = arm if arm in self.trained else FLOAT
        return (self.folder / trained / "training.json").exists()

    def start(self, arm: str) -> str:
        """The float model that it starts from."""
        found = ARMS.get(DYNAMIC.get(arm, arm))
        return FLOAT if found is None else found.start

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
        start: str | Architecture = str(self.model_folder(self.start(arm)))
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
        shutil.rmtree(self.folder / arm / "checkpoints", ignore_errors=True)

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

    def translator(self, arm: str, is_compiled: bool = False) -> Translate:
        """From sentences and the size of a batch to their translations. is_compiled: the encoder of
        our model runs as a program."""
        tokenizer, beams = load_tokenizer(self.float_folder), self.given.beams
        if arm == GENERATE:
            return by_transformers(load_model(self.float_folder), tokenizer, beams)
        self.make(arm)
        if arm in PEERS:
            return self.peer(arm, torch.get_num_threads())
        model = load_model(self.model_folder(arm))
        if is_compiled:
            lowbit.compile(model.get_encoder())

        def translate(sentences: Sequence[str], batch: int) -> tuple[str, ...]:
            return Translator(model, tokenizer, beams, None, batch)(sentences, False).outputs

        return translate

    def peer(self, arm: str, threads: int) -> Apart:
        folder, most = self.model_folder(arm), self.given.max_length
        beams = self.given.beams
        return Apart(threads, load, folder, self.float_folder, PEERS[arm], beams, most)

    def contenders(self, arm: str) -> list[Translate]:
        """Our models with a compiled encoder too. Other engines with one thread too: where
        processors are virtual, waking a second one may take longer than it saves."""
        if arm == GENERATE:
            return [self.translator(arm)]
        if arm not in PEERS:
            return [self.translator(arm, is_compiled) for is_compiled in (False, True)]
        self.make(arm)
        return [self.peer(arm, threads) for threads in sorted({1, torch.get_num_threads()})]

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
        """Written tokens a second, by arm and batch: medians of rounds in which each has a turn, of
        an arm's fastest contender."""
        tokenizer, some = load_tokenizer(self.float_folder), self.test.sources[:SPEED_SENTENCES]
        contenders = [(arm, translate) for arm in arms for translate in self.contenders(arm)]
        found: dict[tuple[int, int], list[float]] = {}
        for _ in range(ROUNDS + 1):
            for number, (_, translate) in enumerate(contenders):
                for batch in BATCHES:
                    outputs, seconds = timed(translate, some, batch)
                    tokens = sum(len(ids) for ids in tokenizer(list(outputs)).input_ids)
                    found.setdefault((number, batch), []).append(tokens / seconds)
        best: dict[tuple[str, int], float] = {}
        for (number, batch), values in found.items():
            key = contenders[number][0], batch
            # The first round warms up.
            best[key] = max(best.get(key, 0.0), statistics.median(values[1:]))
        return best

    def measure(self, speed: bool) -> None:
        """The rows of what the work folder has and the table lacks; times too, if so asked."""
        here = [arm for arm in self.arms if self.finished(arm)]
        for arm in here:
            self.rows.find(self.piece(arm), lambda arm=arm: asdict(self.row(arm)))
        untimed = [arm for arm in here if self.timing(arm) not in self.rows.found]
        if speed and untimed:
            speeds = self.speeds([GENERATE, *untimed])
            for arm in untimed:
                taken = {"own": [speeds[arm, b] for b in BATCHES]}
                taken["generate"] = [speeds[GENERATE, b] for b in BATCHES]
                self.rows.find(self.timing(arm), lambda taken=taken: taken)

    def row(self, arm: str) -> Row:
        base, own, start = self.scored(FLOAT), self.scored(arm), self.start(arm)
        return Row(
            bleu=own["bleu"][0],
            chrf=own["chrf"][0],
            before=self.scored(start)["bleu"][0],
            p=None if arm == FLOAT else self.chances([start, arm])[arm],
            bits=own.get("bits"),
            disk=own["disk"] / MEBI,
            smaller=base["disk"] / own["disk"],
            resident_smaller=base["resident"] / own["resident"] if "resident" in own else None,
            peak=own["peak"] / MEBI if own.get("peak") else None,
            notes=[own[name][1] for name in ("bleu", "chrf")],
            sentences=len(self.test.sources),
        )

    def table(self) -> Iterator[str]:
        done = {
            arm: Row(**self.rows.found[self.piece(arm)]) for arm in self.arms if self.known(arm)
        }
        sentences = f": {next(iter(done.values())).sentences:,} sentences" if done else ""
        yield f"\n## {self.name}, seed {self.seed}{sentences}\n"
        every = self.corpus.eval_steps
        yield f"{self.corpus.epochs:g} epochs in float, then {self.corpus.further:g} of each model"
        yield f"that is trained on; scored after each {f'{every} steps' if every else 'epoch'}.\n"
        if absent := [arm for arm in self.arms if arm not in done]:
            yield f"Not trained yet: {'; '.join(absent)}.\n"
        if not done:
            return
        notes = next(iter(done.values())).notes
        yield f"BLEU {notes[0]}; chrF {notes[1]}."
        yield from self.told_of_machines(done)
        yield (
            "| | bits/weight | on disk, MiB | × smaller | in memory, × smaller | BLEU |"
            " change | p | chrF | peak memory, MiB | machine |"
            + "".join(f" tokens/s, batch {b} | × |" for b in BATCHES)
            + " timed on |"
        )
        yield "|---" * (12 + 2 * len(BATCHES)) + "|"
        for arm, row in done.items():
            timing, rates = self.timing(arm), " – | – |" * len(BATCHES) + " |"
            if taken := self.rows.found.get(timing):
                pairs = zip(taken["own"], taken["generate"], strict=True)
                rates = "".join(f" {own:,.0f} | {own / theirs:.2f} |" for own, theirs in pairs)
                rates += f" {self.rows.letter(timing)} |"
            yield (
                f"| {arm} | {told(row.bits)} | {told(row.disk)} |"
                f" {told(row.smaller)} | {told(row.resident_smaller)} | {row.bleu:.2f} |"
                f" {row.bleu - row.before:+.2f} | {told(row.p)} | {row.chrf:.2f} |"
                f" {told(row.peak)} | {self.rows.letter(self.piece(arm))} |{rates}"
            )

    def told_of_machines(self, done: Mapping[str, Row]) -> Iterator[str]:
        """What its own code gave on each machine that took times, and each one's float model."""
        # A machine that took times on several days has several, the first of which most rows have.
        found: dict[tuple[str, tuple[float, ...]], list[str]] = {}
        for arm in done:
            if taken := self.rows.found.get(self.timing(arm)):
                key = self.rows.letter(self.timing(arm)), tuple(taken["generate"])
                found.setdefault(key, []).append(arm)
        if found:
            told_of: set[str] = set()
            each = []
            for (letter, rates), arms in found.items():
                where = f"{letter}, {', '.join(arms)}" if letter in told_of else letter
                told_of.add(letter)
                pairs = zip(rates, BATCHES, strict=True)
                each.append(
                    " and ".join(f"{n:,.0f} at batch {b}" for n, b in pairs) + f" ({where})"
                )
            yield f"Tokens a second of {GENERATE}: {'; '.join(each)}. × is beside these.\n"
        scores: dict[str, float] = {}
        for arm, row in ((arm, row) for arm, row in done.items() if self.start(arm) == FLOAT):
            scores.setdefault(self.rows.letter(self.piece(arm)), row.before)
        if len(scores) > 1:
            found_by = ", ".join(f"{score:.2f} ({letter})" for letter, score in scores.items())
            yield "Each machine trained the float model with this seed; bits differ between"
            yield "processors. A change is beside the float model of the row's own machine, with a"
            yield f"BLEU of {found_by}.\n"


def by_transformers(model: PreTrainedModel, tokenizer: Any, beams: int) -> Translate:
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
    """One after another, what is wanted and no other process is at: the float models that others
    start from, then arm by arm, until nothing is wanted."""
    while missing := [(run, arm) for arm in (FLOAT, *only) for run in runs if run.wanted(arm)]:
        starts = [(run, start) for run, arm in missing for start in (FLOAT, run.start(arm))]
        wanted = [(run, start) for run, start in starts if not run.finished(start)] + missing
        if not any(attempt(run, arm) for run, arm in wanted):
            time.sleep(POLL_SECONDS)


def attempt(run: Run, arm: str) -> bool:
    """Train a model if its turn has come; whether it was."""
    if arm != FLOAT and not (run.finished(FLOAT) and run.finished(run.start(arm))):
        return False
    with alone(run.folder / arm) as free:
        # It may have been finished since the caller looked.
        if not free or run.finished(arm):
            return False
        run.train(arm)
        return True


def timed(
    translate: Translate, sentences: Sequence[str], batch: int
) -> tuple[tuple[str, ...], float]:
    """The translations, and how many seconds they took."""
    with beside.stopped():
        if isinstance(translate, Apart):
            return translate(sentences, batch), translate.timed(sentences, batch)
        start = time.perf_counter()
        outputs = translate(sentences, batch)
        return outputs, time.perf_counter() - start


def page(runs: Sequence[Run], rows: Pieces, given: argparse.Namespace) -> Iterator[str]:
    yield from (
        "# Translation in binary codes",
        "",
        f"{given.architecture.capitalize()}: {given.layers} + {given.layers} layers of width"
        f" {given.width}, vocabulary {given.vocabulary:,}; trained with bfloat16 products (if the"
        " processor has them), scored in float32;",
        "written by `bench/translation.py`. What is trained on learns by half from the tokens of",
        "the float model that it starts from (distillation), but for the reference schedule: that",
        "is greedy, per row, projected when it is scored, from labels alone; `30 epochs`: of the",
        "reference's own, each from one score to the next. `float32, trained on` has as many steps",
        f"more, without codes. `longer`: {LONGER} times as many. `from longer float32` and `twice",
        "longer` start from `float32, longer` and have as many again; their change is beside it.",
        "Sizes count everything: codes, scales, norms, biases, positions. In memory: the tensors",
        "of a model that has translated. Peak memory is that of a fresh process that loads the",
        "model and runs it once. p: how",
        "likely so large a change of BLEU is by chance, by a paired bootstrap. Search with",
        f"{given.beams} beam(s). Times of CTranslate2 are with one thread or as many as the others",
        "have, whichever is faster. Times of lowbit are with the encoder as it is or compiled,",
        "whichever is faster; those beside 617 and 553 tokens a second (machine A) are of an",
        "earlier version, with the encoder as it is.",
        "",
    )
    yield from rows.legend()
    for run in runs:
        yield from run.table()


# With another value of these, what is measured is not what the page is about.
OF_THE_PAGE = (
    "max_steps",
    "sentences",
    "batch_size",
    "architecture",
    "layers",
    "width",
    "vocabulary",
    "max_length",
    "beams",
)


def is_trial(given: argparse.Namespace) -> bool:
    usual = arguments(["--work", str(given.work)])
    return any(getattr(given, name) != getattr(usual, name) for name in OF_THE_PAGE)


def runs_of(given: argparse.Namespace, rows: Pieces, corpora: Iterable[str]) -> list[Run]:
    return [
        Run(name, int(seed), CORPORA[name].under(given.data / name), given, rows)
        for seed in given.seeds.split(",")
        for name in corpora
    ]


def on_the_page(rows: Pieces, chosen: Sequence[str]) -> list[str]:
    """The corpora that have rows, and those of this run."""
    known = {name.partition(" ")[0] for name in rows.found}
    return [name for name in CORPORA if name in known or name in chosen]


def arguments(told: Sequence[str] | None = None) -> argparse.Namespace:
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
    parser.add_argument("--rows", type=Path, help="what is known, in place of the committed rows")
    parser.add_argument("--speed", action="store_true", help="take the times that are missing")
    parser.add_argument("--write", action="store_true", help="write docs/results/translation.md")
    given = parser.parse_args(told)
    only = given.only.split(";")
    if unknown := [arm for arm in only if arm not in ARMS]:
        parser.error(f"arm {unknown[0]!r} is unknown: use {'; '.join(ARMS)}")
    return given


def main() -> None:
    given = arguments()
    own = Path(given.work) / "rows.jsonl" if is_trial(given) else None
    rows = Pieces(given.rows or own or result_page(PAGE).with_suffix(".jsonl"))
    chosen = given.corpora.split(",")
    runs = runs_of(given, rows, chosen)
    if given.train:
        train_missing(runs, given.only.split(";"))
    with alone(Path(given.work)) as free:
        # Whoever comes second would disturb the first one's times.
        if not free:
            print(f"another process measures what is in {given.work}")
            return
        with torch.inference_mode():
            for run in runs:
                run.measure(given.speed)
        shown = runs_of(given, rows, on_the_page(rows, chosen))
        finish(list(page(shown, rows, given)), result_page(PAGE), given.write)


if __name__ == "__main__":
    main()
