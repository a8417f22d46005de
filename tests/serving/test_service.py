"""The whole service: processes, a real client, and what goes wrong outside of it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs the package fastapi")
pytest.importorskip("uvicorn", reason="the service needs the package uvicorn")
pytest.importorskip("prometheus_client", reason="the service needs prometheus-client")

import lowbit
from lowbit.pipelines.opened import open_pipeline
from tests.folders import save

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save("bert", folder / "float")
    lowbit.quantize_checkpoint(folder / "float", "int8-dynamic", folder / "int8", progress=False)
    return folder / "int8"


@contextmanager
def serving(model, *options):
    """The address of a service, and its process."""
    told = [sys.executable, "-m", "lowbit", "serve", str(model), "--port", "0", *options]
    # Of NumPy, which starts its own while it is imported, and takes care of them in a fork.
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(told, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            line = process.stderr.readline()
            found = re.search(r"at (http://127.0.0.1:\d+), \d workers? of", line)
            assert found, line
            drain = threading.Thread(target=process.stderr.read, daemon=True)
            drain.start()
            yield found[1], process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            drain.join(5)


@pytest.fixture(scope="module")
def service(model):
    options = ("--workers", "2", "--threads", "1", "--slow", "2", "--max-connections", "40")
    with serving(model, *options) as found:
        yield found


def get(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode()


def embed(address, texts):
    asked = urllib.request.Request(
        f"{address}/v1/embeddings",
        json.dumps({"input": texts}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return [each["embedding"] for each in json.load(answer)["data"]]


def children(process):
    """The front, then the workers, in the order of their start."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in found.split()]


def test_the_client_of_openai_gets_the_pipelines_vectors(service, model):
    openai = pytest.importorskip("openai", reason="the client is the package openai")
    address, _ = service
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    texts = ["who came", "a" * 30, "b"]
    found = client.embeddings.create(model="tiny", input=texts)
    expected = open_pipeline(model)([(text,) for text in texts], 100)
    np.testing.assert_allclose([each.embedding for each in found.data], expected, atol=1e-5)
    assert found.usage.total_tokens == 39
    with pytest.raises(openai.BadRequestError, match="has no token"):
        client.embeddings.create(model="tiny", input="")
    assert [each.id for each in client.models.list()] == ["int8"]


def test_a_killed_worker_loses_nothing(service, model):
    address, process = service
    expected = open_pipeline(model)([("ab" * n,) for n in range(1, 20)], 1)
    stop = threading.Event()

    def kill():
        for _ in range(3):
            if stop.wait(0.3):
                return
            os.kill(children(process)[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    until = time.monotonic() + 1.5
    answered = 0
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < until:
            texts = [["ab" * n] for n in range(1, 20)]
            found = [vectors[0] for vectors in pool.map(lambda each: embed(address, each), texts)]
            np.testing.assert_allclose(found, expected, atol=1e-5)
            answered += len(found)
    stop.set()
    killer.join()
    metrics = get(f"{address}/metrics")
    assert answered and "lowbit_worker_deaths_total 3.0" in metrics
    assert 'status="500"' not in metrics
    assert json.loads(get(f"{address}/health"))["workers"] == 2


def test_clients_that_send_slowly_are_cut_off_and_others_do_not_wait(service):
    address, _ = service
    host, port = address.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for each in slow:
        each.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n")
    assert embed(address, ["a"])
    for each in slow:
        each.settimeout(10)
        assert each.recv(1) == b""  # closed
        each.close()
    with socket.create_connection((host, int(port))) as other:
        other.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b" 400 " in other.recv(1000)
    assert embed(address, ["a"])


def test_workers_share_the_weights(service):
    _, process = service
    # A tiny model: this bounds what a worker has besides weights.
    for worker in children(process)[1:]:
        lines = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        assert private < 20_000, f"{private} KiB"
    # What is forked has no thread that could hold a lock.
    assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 1


def test_a_full_queue_refuses_and_a_signal_ends_after_the_last_answer(model):
    with serving(model, "--queue", "300", "--max-inputs", "300") as (address, process):
        embed(address, ["a"])
        (worker,) = children(process)[1:]
        os.kill(worker, signal.SIGSTOP)
        texts = ["ab" * (n % 20 + 1) for n in range(300)]
        with ThreadPoolExecutor(2) as pool:
            accepted = pool.submit(embed, address, texts)
            while "lowbit_rows_accepted 300.0" not in get(f"{address}/metrics"):
                time.sleep(0.05)
            with pytest.raises(urllib.error.HTTPError) as refused:
                embed(address, ["a"])
            assert refused.value.code == 429 and int(refused.value.headers["Retry-After"]) >= 1
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            os.kill(worker, signal.SIGCONT)
            assert len(accepted.result()) == 300
        assert process.wait(20) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.nightly
def test_transformers_own_server_generates_with_a_quantized_model(tmp_path):
    """What `lowbit serve` says to use for decoders."""
    openai = pytest.importorskip("openai", reason="the client is the package openai")
    save("gpt2", tmp_path / "float")
    lowbit.quantize_checkpoint(tmp_path / "float", "int4", tmp_path / "int4", progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    options = [str(tmp_path / "int4"), "--port", str(port), "--device", "cpu"]
    told = [sys.executable, "-m", "lowbit", "run", "--", *program, *options]
    with subprocess.Popen(told, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            client = client.with_options(max_retries=30)
            found = client.completions.create(
                model=str(tmp_path / "int4"), prompt="who came", max_tokens=5, temperature=0
            )
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(30)
    pipeline = open_pipeline(tmp_path / "int4", max_new_tokens=5)
    assert found.choices[0].text == pipeline([("who came",)], 100)[0]
