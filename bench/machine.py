"""What a result has to say about the machine and the code it was measured with."""

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lowbit.inspect.environment import processor
from lowbit.kernels import native


def commit() -> str:
    """HEAD, and whether the code differs from it; results that were just written do not count."""

    def git(*told: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent.parent), *told]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "csrc", "bench")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'-dirty' if changed else ''}"


def together() -> float:
    """How much more all threads multiply than one. On a shared machine two processors may be one
    core of the host's, for a while: then it is near 1, and times of that while are another
    machine's."""
    threads = torch.get_num_threads()
    matrix = torch.randn(384, 384)

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        times = []
        for _ in range(40):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    try:
        return seconds(1) / seconds(threads)
    finally:
        torch.set_num_threads(threads)


def where() -> dict[str, str]:
    """What is kept with a result: the accelerator, if torch uses one, and the processor; threads
    and how they wait, if that is set; the commit; torch."""
    names = [processor()]
    if torch.cuda.is_available():
        names.insert(0, torch.cuda.get_device_name())
    return {
        "processor": " beside ".join(names),
        "threads": threads(),
        "lowbit": commit(),
        "torch": torch.__version__,
    }


def threads(does: str = "") -> str:
    """How many, and how they wait; does: what more is said of several."""
    # Passive threads sleep between operations: waking one takes longer than a small operation.
    policy = os.environ.get("OMP_WAIT_POLICY")
    waiting = f" (OMP_WAIT_POLICY={policy})" if policy else ""
    count = torch.get_num_threads()
    return f"{'1 thread' if count == 1 else f'{count} threads{does}'}{waiting}"


def described() -> str:
    """One line: processor, threads, what they do together and how they wait, if that is set; commit
    and torch."""
    does = "" if torch.get_num_threads() == 1 else f" that do {together():.1f} times one's work"
    code = f"lowbit {commit()}, torch {torch.__version__}"
    return f"Processor: {processor()}, {threads(does)}; {code}."


def result_page(name: str) -> Path:
    """Where a bench keeps its result."""
    return Path(__file__).parent.parent / "docs" / "results" / name


def speed_page(name: str, feature: str | None = None) -> Path:
    """The same for times, each instruction set (native.Target.feature) by itself, the best one by
    default: NAME.md where there are AMX tiles, else NAME-avx512vnni.md and so on."""
    products = (target.feature for target in native.targets("linear"))
    best = next((found for found in products if not native.lacks(found)), native.BASE)
    feature = feature or best
    return result_page(f"{name}.md" if feature == "amx" else f"{name}-{feature}.md")


class Page:
    """A result that grows: each line is printed as it comes and, if so asked, kept at once, so that
    a run which is cut off leaves what it measured."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.lines: list[str] = []

    def say(self, *lines: str) -> None:
        self.lines += lines
        print(*lines, sep="\n", flush=True)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def finish(lines: Sequence[str], page: Path, write: bool) -> None:
    """Print a result and, if so asked, keep it."""
    text = "\n".join(lines) + "\n"
    print(text)
    if write:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
