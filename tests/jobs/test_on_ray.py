"""The same job by Ray's actors: the same output, also if one of them is killed."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray.data", reason="--engine ray needs the package ray[data]")

import ray

from lowbit.errors import UsageError
from lowbit.jobs.job import Job
from lowbit.jobs.on_ray import on_ray
from lowbit.jobs.run import run
from tests.folders import save

pytestmark = pytest.mark.nightly
ROWS = 6000


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def job(tmp_path):
    texts = ["ab" * (n * 7 % 25 + 1) for n in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": texts})
    pq.write_table(table, tmp_path / "docs.parquet", row_group_size=4000)
    model = save("bert", tmp_path / "bert")
    output = tmp_path / "vectors.parquet"
    return Job(str(model), tmp_path / "docs.parquet", "text", output, tokens=256, part_rows=50)


def actors():
    """Processes of this cluster that have the model; Ray writes into their titles what they are."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "MapBatches(Actor)" in " ".join(process.cmdline())]


def killing(engine, folder, killed):
    """The engine, while one of its actors is killed in the middle of the work."""

    def run_engine(work, spans):
        def kill():
            while len(list(folder.glob("*.arrow"))) < 10:
                time.sleep(0.02)
            victim = actors()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        yield from engine(work, spans)
        thread.join(1)

    return run_engine


def test_a_killed_actor_loses_nothing_and_changes_nothing(cluster, job):
    run(job, progress=False)
    expected = pq.read_table(job.output)
    job.output.unlink()
    killed = []
    folder = Path(f"{job.output}.parts")
    found = run(job, killing(on_ray(2, 1), folder, killed), progress=False)
    assert killed and found.rows == ROWS
    got = pq.read_table(job.output)
    assert got.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    ours = got.column("embedding").combine_chunks().flatten().to_numpy()
    theirs = expected.column("embedding").combine_chunks().flatten().to_numpy()
    assert abs(ours - theirs).max() < 1e-4
    assert not folder.exists()


def test_tables_that_are_read_from_their_start_are_refused(cluster, job, tmp_path):
    data = tmp_path / "docs.csv"
    data.write_text("text\na\n")
    with pytest.raises(UsageError, match="--engine ray needs Parquet or Arrow"):
        run(Job(job.model, data, "text", job.output), on_ray(2, 1), progress=False)
