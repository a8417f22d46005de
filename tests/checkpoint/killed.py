"""Commands that are killed, interrupted or run out of disk, at every point and at random moments.

    python -m tests.checkpoint.killed [--seed 0] [--kills 300] [--step 1]

Each run is a fork of this process. A point is a call that touches the folder of the output (making,
opening, renaming, removing …), of which Python tells an audit hook: before it, the run kills or
signals itself. Then the same command runs to its end. What is asked of every run:

    after a kill     the output is absent, what it was, or complete; if it was there and nothing
                     took its place, it is there again once the next run looks
    after a signal   the same, exit code 128 + the signal, one sentence, nothing hidden is left
    at the end       the next run ends well, its output is complete, nothing hidden is left
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lowbit.checkpoint.work_folder import recover
from lowbit.cli import main as command
from tests.folders import save
from tests.models import make
from tests.training.test_squad import VOCABULARY, paragraph, words

Job = Callable[[], None]


def digest(output: Path) -> str:
    """Of all names and contents; "" for what is not there."""
    if not output.exists():
        return ""
    found = hashlib.sha256()
    files = [output] if output.is_file() else sorted(output.rglob("*"))
    for file in files:
        found.update(str(file.relative_to(output.parent)).encode())
        if file.is_file():
            found.update(file.read_bytes())
    return found.hexdigest()


def run(job: Job, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """The job in a fork: how it ended (the status of waitpid), and standard error."""
    with tempfile.TemporaryFile() as said:
        child = start(job, before, said.fileno())
        status = os.waitpid(child, 0)[1]
        said.seek(0)
        return status, said.read().decode(errors="replace")


def start(job: Job, before: Callable[[], None] | None, said: int) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(said, 2)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        sys.stderr = os.fdopen(2, "w")
        torch.set_num_threads(1)  # a fork has none of its parent's
        if before is not None:
            before()
        job()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def at_point(number: int, folder: Path, act: Callable[[], None]) -> Callable[[], None]:
    """What makes a process act before the call of that number which touches `folder`."""
    left, inside = [number], str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith(("os.", "open", "fcntl.", "shutil.")) or left[0] < 0:
            return
        if any(isinstance(a, str | Path) and str(a).startswith(inside) for a in arguments):
            left[0] -= 1
            if left[0] < 0:
                act()

    return lambda: sys.addaudithook(hook)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lowbit(*arguments: object) -> Job:
    def job() -> None:
        sys.argv = ["lowbit", *map(str, arguments)]
        command()

    return job


class Case:
    """A command that writes `output`, alone in its folder, over `old` if that is not empty. kept:
    the hidden folder from which it goes on after a signal."""

    stoppable = True  # by a signal, which leaves nothing else

    def __init__(self, folder: Path, job: Job, output: str, old: bool, kept: str = "") -> None:
        self.folder, self.job, self.output, self.old = folder, job, folder / output, old
        self.kept = kept
        self.wanted = {self.output.name}
        self.clear()
        status, said = run(job)
        assert status == 0, said
        self.complete = digest(self.output)
        self.clear()
        self.first = digest(self.output)

    def clear(self) -> None:
        for each in list(self.folder.iterdir()):
            _remove(each)
        if self.old:
            self.output.mkdir()
            (self.output / "config.json").write_text('{"old": true}')

    def faults(self, status: int, said: str, signalled: int = 0) -> Iterator[str]:
        """What is wrong after a run that was stopped."""
        found = digest(self.output)
        if not found and self.old:
            with suppress(Exception):
                recover(self.output)
            found = digest(self.output)
        if found not in (self.first, self.complete):
            yield f"the output is neither what it was nor complete: {_listed(self.folder)}"
        if signalled and status != 0:
            if status >> 8 != 128 + signalled:
                yield f"ended with {status >> 8} (signal {status & 127})"
            if "interrupted" not in said or len(said.strip().split("\n")) != 1:
                yield f"said {said!r}"
            if hidden := [name for name in self.hidden() if name != self.kept]:
                yield f"left {hidden}"
        status, said = run(self.job)
        if status != 0:
            yield f"the next run ended with {status >> 8} (signal {status & 127}): {said}"
        elif digest(self.output) != self.complete:
            yield f"the next run is not complete: {_listed(self.folder)}"
        if hidden := self.hidden():
            yield f"the next run left {hidden}"

    def hidden(self) -> list[str]:
        return [f.name for f in self.folder.iterdir() if f.name not in self.wanted]

    def at_every_point(
        self, act: Callable[[], None], signalled: int = 0, step: int = 1
    ) -> Iterator[tuple[int, list[str]]]:
        """(number, faults) of each point, until a run is not stopped any more."""
        for number in range(0, 10_000, step):
            self.clear()
            status, said = run(self.job, at_point(number, self.folder, act))
            yield number, [*self.faults(status, said, signalled)]
            if status == 0:
                return

    def at_random(self, chance: random.Random, count: int) -> Iterator[tuple[float, list[str]]]:
        """(seconds, faults) of kills at random moments of a run."""
        self.clear()
        begun = time.monotonic()
        run(self.job)
        lasts = time.monotonic() - begun
        for _ in range(count):
            self.clear()
            moment = chance.uniform(0, 1.1 * lasts)
            with tempfile.TemporaryFile() as said:
                child = start(self.job, None, said.fileno())
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            yield moment, [*self.faults(1, "")]


class Training(Case):
    """A command whose output are several models: each is absent or complete, and `again` goes on
    from there to all of them."""

    stoppable = False  # it keeps its checkpoints

    def __init__(self, folder: Path, job: Job, again: Job) -> None:
        self.again = again
        super().__init__(folder, job, "out", old=False)
        run(job)
        self.models = {name: _weights(self.output / name) for name in ("float", "int8")}
        assert all(self.models.values())
        self.clear()

    def faults(self, status: int, said: str, signalled: int = 0) -> Iterator[str]:
        for name, complete in self.models.items():
            if _weights(self.output / name) not in ("", complete):
                yield f"{name} is not complete: {_listed(self.output)}"
        told = self.output / "training.json"
        if told.exists():
            json.loads(told.read_text())
        status, said = run(self.again)
        if status != 0:
            yield f"the next run ended with {status >> 8} (signal {status & 127}): {said}"
        elif not all(_weights(self.output / name) for name in self.models) or not told.exists():
            yield f"the next run is not complete: {_listed(self.output)}"
        if hidden := [*self.hidden(), *(f.name for f in self.output.glob(".*"))]:
            yield f"the next run left {hidden}"


def _weights(folder: Path) -> str:
    """What the files say that a model is; nothing of when it was made."""
    return "".join(digest(folder / name) for name in ("model.safetensors", "config.json"))


def training(work: Path) -> Training:
    """Two steps towards integers, with a checkpoint after each."""
    for name in ("model", "data", "training"):
        (work / name).mkdir()
    make("bert").save_pretrained(work / "model")
    words(*VOCABULARY).save_pretrained(work / "model")
    for split in ("train", "dev"):
        stored = {"data": [{"paragraphs": [paragraph(n) for n in range(4)]}]}
        (work / "data" / f"{split}-v1.1.json").write_text(json.dumps(stored))
    given = ("train", "squad", work / "model", "--data", work / "data", "--max-steps", 2,
             "--save-steps", 1, "--max-length", 24, "--stride", 4, "--qat", "int8", "-q",
             "-o", work / "training" / "out")  # fmt: skip
    return Training(work / "training", lowbit(*given), lowbit(*given, "--resume"))


def searching(work: Path, source: Path, text: Path) -> Case:
    (work / "search").mkdir()
    job = lowbit("search", source, "--task", "perplexity", "--data", text, "--calibration", text,
                 "--samples", 2, "--schemes", "int2,int8", "--max-bits", 5, "-q",
                 "-o", work / "search" / "recipe.yaml")  # fmt: skip
    return Case(work / "search", job, "recipe.yaml", old=False)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _listed(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


def cases(work: Path) -> dict[str, Case]:
    """Each command, over nothing and, those that quantize, over an old output."""
    source, text = save("gpt2", work / "float"), work / "text.txt"
    text.write_text("\n".join(f"w{i % 90 + 4} w{i % 7 + 4} w{i % 11 + 4}" for i in range(200)))
    made = {}
    for old in (False, True):
        for name, options in {
            "streaming": ["--recipe", "int8"],
            "in memory": ["--recipe", "int8-static", "--calibration", text, "--length", 8],
            "journal": ["--recipe", "int4", "--solver", "gptq", "--calibration", text,
                        "--length", 8, "--samples", 4],
        }.items():  # fmt: skip
            folder = work / f"{name} {old}"
            folder.mkdir()
            job = lowbit("quantize", source, *options, "-o", folder / "out", "-q", "--overwrite")
            kept = ".out.solving" if name == "journal" else ""
            made[f"{name}, {'over an old output' if old else 'new'}"] = Case(
                folder, job, "out", old, kept
            )
    made["search"], made["train"] = searching(work, source, text), training(work)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=300, help="at random moments, of all cases")
    parser.add_argument("--step", type=int, default=1, help="every so many points")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    asked = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        made = cases(Path(work))
        made = {name: case for name, case in made.items() if name.startswith(asked.only)}
        for number, (name, case) in enumerate(made.items()):
            told: Counter[str] = Counter()
            runs: list[tuple[str, Iterator[tuple[float, list[str]]]]] = [
                ("kill", case.at_every_point(kill, step=asked.step)),
                ("random kill", case.at_random(
                    random.Random(asked.seed + number), asked.kills // len(made))),
            ]  # fmt: skip
            for signalled in (signal.SIGINT, signal.SIGTERM) if case.stoppable else ():
                act = _signalling(signalled)
                runs.append((signalled.name, case.at_every_point(act, signalled, 3 * asked.step)))
            for kind, found in runs:
                for where, faults in found:
                    told[kind] += 1
                    told[f"{kind}: faults"] += bool(faults)
                    for fault in faults:
                        print(f"    {name}, {kind} at {where}: {fault}", flush=True)
            print(name, json.dumps(told), flush=True)
            total.update(told)
    print("all", json.dumps(total))
    sys.exit(any(total[kind] for kind in total if kind.endswith("faults")))


def _signalling(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
