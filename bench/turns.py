"""Contenders take turns within every round, so that a busy machine slows all of them: the time of
each is its median, and a ratio the median of the ratios within a round."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import beside
import torch


def parser(
    description: str | None, result: Path, rounds: int, threads: int = 2
) -> argparse.ArgumentParser:
    """Options that every bench of speed has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=int, default=threads)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--write", action="store_true", help=f"write {result.name}")
    return made


def ready(threads: int) -> None:
    """The same numbers each time, no gradients, and so many threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)


class Seconds(float):
    """What a run returns that was timed elsewhere."""


def seconds(run: Callable[[], object]) -> float:
    with beside.stopped():
        start = time.perf_counter()
        result = run()
        return result if isinstance(result, Seconds) else time.perf_counter() - start


def again(run: Callable[[], object]) -> Seconds:
    """How long it takes as a server runs it, right after itself: its weights, its code and its
    memory are in the caches as far as they fit."""
    run()
    return Seconds(seconds(run))


def take_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, unmeasured: int = 1
) -> dict[str, list[float]]:
    """Seconds of each run in each round, after some in which they find their memory."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(unmeasured + rounds):
        for name, run in runs.items():
            spent = seconds(run)
            if number >= unmeasured:
                taken[name].append(spent)
    return taken


class Budget:
    """Seconds that a bench may take, shared by the rows that are still to come."""

    def __init__(self, seconds: float, rows: int) -> None:
        self.end, self.rows = time.perf_counter() + seconds, rows

    def share(self) -> float:
        """Seconds for the next row."""
        left = self.end - time.perf_counter()
        self.rows -= 1
        return left / (self.rows + 1)


def in_turns(
    runs: Mapping[str, Callable[[], object]], budget: float, most: int = 9
) -> dict[str, list[float]]:
    """As `take_turns`, in as many rounds as `budget` seconds allow: one to `most`, after one that
    is not measured."""
    start = time.perf_counter()
    taken = take_turns(runs, 1)
    while len(next(iter(taken.values()))) < most:
        done = len(next(iter(taken.values()))) + 1
        spent = time.perf_counter() - start
        if spent / done * (done + 1) > budget:
            break
        for name, times in take_turns(runs, 1, 0).items():
            taken[name] += times
    return taken


def times_faster(than: Sequence[float], taken: Sequence[float]) -> float:
    """How many times `than` takes as long, round by round."""
    return statistics.median(a / b for a, b in zip(than, taken, strict=True))
