"""Nothing that was accepted is lost, and nothing is accepted that cannot be held."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the service needs the package uvicorn")
pytest.importorskip("prometheus_client", reason="the service needs prometheus-client")

from lowbit.errors import InputError
from lowbit.serving.problem import ProblemError
from tests.serving.standing_in import Shouting, service, started_worker, value


def rows(*texts):
    return [(text,) for text in texts]


def test_results_are_in_the_order_of_rows():
    async def check():
        async with service(workers=2) as dispatcher:
            many = [[f"{n}-{m}" * (m + 1) for m in range(5)] for n in range(4)]
            found = await asyncio.gather(*(dispatcher.answer(rows(*each)) for each in many))
            for each, answers in zip(many, found, strict=True):
                assert answers.results == [text.upper() for text in each]
                assert answers.tokens == sum(map(len, each))
            assert (await dispatcher.answer(rows("a", "", "b"))).results == ["A", None, "B"]
            assert dispatcher.accepted == 0 and not dispatcher.queue
            assert value(dispatcher, "workers") == 2

    asyncio.run(check())


def test_rows_of_many_requests_are_one_batch():
    async def check():
        async with service(tokens=100) as dispatcher:
            busy = asyncio.ensure_future(dispatcher.answer(rows("wait")))
            while not dispatcher.pipeline.seen:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(dispatcher.answer(rows(text)) for text in "abc"))
            await busy
            assert dispatcher.pipeline.seen == [["wait"], ["a", "b", "c"]]

    asyncio.run(check())


def test_a_full_queue_says_when_to_come_again():
    async def check():
        async with service(queue=10, inputs=10) as dispatcher:
            held = [asyncio.ensure_future(dispatcher.answer(rows(*["wait"] * 5))) for _ in "ab"]
            await asyncio.sleep(0)
            with pytest.raises(ProblemError, match="10 rows wait already, and 10 may") as refused:
                await dispatcher.answer(rows("a"))
            assert refused.value.status == 429
            assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
            await asyncio.gather(*held)
            assert (await dispatcher.answer(rows("a"))).results == ["A"]

    asyncio.run(check())


def test_what_a_client_that_left_asked_for_is_not_computed():
    async def check():
        async with service() as dispatcher:
            busy = asyncio.ensure_future(dispatcher.answer(rows("wait")))
            while not dispatcher.pipeline.seen:
                await asyncio.sleep(0.01)
            left = asyncio.ensure_future(dispatcher.answer(rows("left")))
            await asyncio.sleep(0.05)
            left.cancel()
            await busy
            await dispatcher.answer(rows("a"))
            assert dispatcher.pipeline.seen == [["wait"], ["a"]] and dispatcher.accepted == 0

    asyncio.run(check())


def test_a_request_that_takes_too_long_is_told_so():
    async def check():
        async with service(workers=0, timeout=1) as dispatcher:
            with pytest.raises(ProblemError, match="no answer within 1 seconds") as late:
                await dispatcher.answer(rows("a"))
            assert late.value.status == 504 and not dispatcher.queue

    asyncio.run(check())


def test_the_rows_of_a_dead_worker_go_to_another():
    class Dying(Shouting):
        lives = 1

        def compute(self, items):
            if self.lives:
                self.lives -= 1
                raise SystemExit
            return super().compute(items)

    async def check():
        async with service(pipeline=Dying()) as dispatcher:
            asked = asyncio.ensure_future(dispatcher.answer(rows("a", "b", "c")))
            while value(dispatcher, "worker_deaths_total") == 0:
                await asyncio.sleep(0.01)
            assert value(dispatcher, "workers") == 0
            another = started_worker(dispatcher, dispatcher.pipeline)
            assert (await asked).results == ["A", "B", "C"]
            another.cancel()

    asyncio.run(check())


def test_rows_of_a_dead_worker_that_nobody_waits_for_are_dropped():
    class DyingLate(Shouting):
        def compute(self, items):
            super().compute(items)
            raise SystemExit

    async def check():
        async with service(pipeline=DyingLate()) as dispatcher:
            left = asyncio.ensure_future(dispatcher.answer(rows("wait")))
            while not dispatcher.pipeline.seen:
                await asyncio.sleep(0.01)
            left.cancel()
            while value(dispatcher, "worker_deaths_total") == 0:
                await asyncio.sleep(0.01)
            assert not dispatcher.queue and dispatcher.accepted == 0

    asyncio.run(check())


def test_a_row_that_kills_workers_is_refused_and_its_neighbours_are_not():
    async def check():
        async with service(workers=3) as dispatcher:
            held = [dispatcher.answer(rows(text)) for text in ("wait", "wait", "wait")]
            asked = [dispatcher.answer(rows(text)) for text in ("abc", "die", "def")]
            *_, first, killer, last = await asyncio.gather(*held, *asked, return_exceptions=True)
            assert first.results == ["ABC"] and last.results == ["DEF"]
            assert killer.status == 500 and value(dispatcher, "worker_deaths_total") == 2

    asyncio.run(check())


def test_nan_is_one_sentence_and_no_traceback(capsys):
    class Damaged(Shouting):
        def compute(self, items):
            raise InputError("the model gives NaN")

    async def check():
        async with service(pipeline=Damaged()) as dispatcher:
            with pytest.raises(ProblemError, match="^the model gives NaN$") as refused:
                await dispatcher.answer(rows("a"))
            assert refused.value.status == 500

    asyncio.run(check())
    assert capsys.readouterr().err == ""


def test_a_row_with_nan_fails_and_those_in_its_batch_do_not():
    class Overflowing(Shouting):
        def compute(self, items):
            texts = super().compute(items)
            return np.array([[0.0 if t == "WAIT" else float(t)] for t in texts], np.float32)

    async def check():
        async with service(pipeline=Overflowing(), tokens=100) as dispatcher:
            busy = asyncio.ensure_future(dispatcher.answer(rows("wait")))
            while not dispatcher.pipeline.seen:
                await asyncio.sleep(0.01)
            asked = [dispatcher.answer(rows(text)) for text in ("1", "nan", "2", "-inf")]
            first, nan, second, infinite = await asyncio.gather(*asked, return_exceptions=True)
            await busy
            assert sorted(dispatcher.pipeline.seen[1]) == ["-inf", "1", "2", "nan"]
            assert first.results[0].tolist() == [1] and second.results[0].tolist() == [2]
            for failed in (nan, infinite):
                assert failed.status == 500 and "the model gives NaN or ∞" in str(failed)

    asyncio.run(check())


def test_a_fault_of_the_model_ends_a_request_and_not_the_worker(capsys):
    async def check():
        async with service() as dispatcher:
            with pytest.raises(ProblemError, match="the model failed on this input"):
                await dispatcher.answer(rows("fail"))
            assert (await dispatcher.answer(rows("a"))).results == ["A"]

    asyncio.run(check())
    assert "ZeroDivisionError" in capsys.readouterr().err
