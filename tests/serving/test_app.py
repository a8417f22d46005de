"""What the endpoints answer, without a network: calls of the ASGI application."""

import asyncio
import base64
import json

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="the service needs the package fastapi")
pytest.importorskip("uvicorn", reason="the service needs the package uvicorn")
pytest.importorskip("prometheus_client", reason="the service needs prometheus-client")

from lowbit.pipelines.opened import open_pipeline
from lowbit.serving.app import application
from tests.folders import save
from tests.serving.standing_in import service, value


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def open_(name, **options):
        if not (folder / name).is_dir():
            save(name, folder / name)
        return open_pipeline(folder / name, **options)

    return open_


async def call(app, path, body=None, headers=(), parts=None, leave=None):
    """Status, headers and content of an answer. parts: of the body, with pauses; leave: seconds
    after which the client goes."""
    if parts is None:
        stored = body if isinstance(body, bytes) else json.dumps(body).encode()
        parts = [(0, stored)] if body is not None else [(0, b"")]
    sent = []
    given = list(parts)

    async def receive():
        if given:
            pause, part = given.pop(0)
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": part, "more_body": bool(given)}
        await asyncio.sleep(60 if leave is None else leave)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None and len(parts) == 1 else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    if not sent:
        return None, {}, b""
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content


def ask(pipeline, *calls, **settings):
    """The answers, as (status, JSON)."""

    async def answers():
        async with service(pipeline=pipeline, **settings) as dispatcher:
            app = application("tiny", dispatcher)
            found = [await call(app, *each) for each in calls]
            return [(status, json.loads(content)) for status, _, content in found]

    return asyncio.run(answers())


def sentence(answer):
    return answer["error"]["message"]


def test_embeddings_are_those_of_the_pipeline(opened):
    embedder = opened("bert")
    texts = ["who came", "a"]
    one, many, packed, models = ask(
        embedder,
        ("/v1/embeddings", {"input": "who came", "model": "any/name"}),
        ("/v1/embeddings", {"input": texts}),
        ("/v1/embeddings", {"input": texts, "encoding_format": "base64"}),
        ("/v1/models",),
    )
    expected = embedder([(text,) for text in texts], 100)
    assert one[0] == many[0] == 200 and len(one[1]["data"]) == 1
    assert many[1]["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert [each["index"] for each in many[1]["data"]] == [0, 1]
    for wanted, plain, coded in zip(expected, many[1]["data"], packed[1]["data"], strict=True):
        np.testing.assert_allclose(plain["embedding"], wanted, rtol=1e-4, atol=1e-6)
        decoded = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")
        np.testing.assert_allclose(decoded, wanted, rtol=1e-4, atol=1e-6)
    assert models[1]["data"][0]["id"] == "tiny"


def test_rerank_sorts_by_cosine_or_by_a_cross_encoder(opened):
    documents = ["who came", {"text": "zzzz"}, "who comes"]
    body = {"query": "who came", "documents": documents, "top_n": 2, "return_documents": True}
    ((status, found),) = ask(opened("bert"), ("/rerank", body))
    assert status == 200 and len(found["results"]) == 2
    best = found["results"][0]
    assert best["index"] == 0 and abs(best["relevance_score"] - 1) < 1e-5
    assert best["document"] == {"text": "who came"}
    classifier = opened("bert-classifier")
    ((status, found),) = ask(classifier, ("/v1/rerank", {**body, "top_n": None}))
    pairs = [("who came", text) for text in ("who came", "zzzz", "who comes")]
    scores = np.stack(classifier(pairs, 1000))[:, -1]
    assert [each["index"] for each in found["results"]] == np.argsort(-scores).tolist()


def test_predict_and_translate(opened):
    classifier = opened("bert-classifier")
    pairs = [("a", "d"), ("b", "c")]
    asked = ("/predict", {"input": pairs}), ("/predict", {"input": ["a", pairs[0]]})
    (_, found), (status, mixed) = ask(classifier, *asked)
    assert status == 400 and "all are texts, or all are pairs" in sentence(mixed)
    for got, wanted in zip(found["data"], classifier(pairs, 1), strict=True):
        np.testing.assert_allclose(list(got["scores"].values()), wanted, rtol=1e-4)
        assert got["label"] == classifier.labels[int(wanted.argmax())]
    translator = opened("bart", max_new_tokens=4)
    ((status, found),) = ask(translator, ("/translate", {"input": ["who", "", "came"]}))
    first, _, last = translator([("who",), ("",), ("came",)], 100)
    assert [each["translation"] for each in found["data"]] == [first, "", last]


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("bert", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
        ("bert", "/rerank", {"query": "a", "documents": ["b"]}),
        ("bert-classifier", "/rerank", {"query": "a", "documents": ["b"]}),
        ("bert-classifier", "/predict", {"input": "a"}),
    ],
)
def test_nan_of_a_model_is_never_an_answer(tmp_path, name, path, body):
    pipeline = open_pipeline(save(name, tmp_path))
    with torch.no_grad():
        pipeline.model.get_input_embeddings().weight.fill_(torch.nan)
    ((status, answer),) = ask(pipeline, (path, body))
    assert status == 500 and sentence(answer).startswith("the model gives NaN or ∞: its weights")


WRONG = [
    (b"{", 400, "JSON decode error"),
    (b"\xff\xfe", 400, "body"),
    (b"[" * 100_000, 400, ""),
    (b"{}", 400, "body.input: Field required"),
    ({"input": [[1, 2]]}, 400, "should be a valid string"),
    ({"input": {"path": "/etc/passwd"}}, 400, "body.input"),
    ({"input": []}, 400, "a request has 1 to 10 inputs, not 0"),
    ({"input": ["a"] * 11}, 400, "a request has 1 to 10 inputs, not 11"),
    ({"input": ["a", ""]}, 400, "input 1 has no token"),
    ({"input": "a", "dimensions": 7}, 400, "vectors have 128 numbers, not 7"),
    ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ({"input": "a" * 200_000}, 413, "a request may have 200,000 bytes"),
]


def test_requests_that_are_wrong_are_told_why(opened):
    """And those after them are served."""
    asked = [("/v1/embeddings", each) for body, *_ in WRONG for each in (body, {"input": "a"})]
    answers = ask(opened("bert"), *asked, body=200_000)
    for (body, status, told), wrong, right in zip(WRONG, answers[::2], answers[1::2], strict=True):
        got, answer = wrong
        assert got == status and told in sentence(answer), str(body)[:80]
        assert right[0] == 200, str(body)[:80]


def test_an_endpoint_that_the_model_has_not_names_those_it_has(opened):
    ((status, answer),) = ask(opened("bert"), ("/translate", {"input": "a"}))
    assert status == 404 and "this model serves /health, /metrics, /rerank" in sentence(answer)


def test_the_key_opens_all_but_health_and_metrics(opened):
    async def check():
        async with service(pipeline=opened("bert"), api_key="secret") as dispatcher:
            app = application("tiny", dispatcher)
            for headers, status in (
                ([], 401),
                ([(b"authorization", b"Bearer wrong")], 401),
                ([(b"authorization", b"Bearer secret")], 200),
            ):
                assert (await call(app, "/v1/embeddings", {"input": "a"}, headers))[0] == status
            assert (await call(app, "/health"))[0] == 200
            status, _, content = await call(app, "/metrics")
            counted = 'lowbit_requests_total{endpoint="/v1/embeddings",status="401"} 2.0'
            assert status == 200 and counted in content.decode()

    asyncio.run(check())


def test_slow_and_endless_bodies_are_cut_off(opened):
    async def check():
        async with service(pipeline=opened("bert"), slow=1, body=1000) as dispatcher:
            app = application("tiny", dispatcher)
            slow = [(0, b'{"input"'), (5, b': "a"}')]
            status, _, content = await call(app, "/v1/embeddings", parts=slow)
            assert status == 408 and b"did not arrive within 1 seconds" in content
            endless = [(0, b"x" * 600)] * 50
            assert (await call(app, "/v1/embeddings", parts=endless))[0] == 413

    asyncio.run(check())


def test_a_client_that_goes_cancels_its_request(opened):
    async def check():
        async with service(workers=0, pipeline=opened("bert")) as dispatcher:
            app = application("tiny", dispatcher)
            assert await call(app, "/v1/embeddings", {"input": "a"}, leave=0.1) == (None, {}, b"")
            assert not dispatcher.queue and dispatcher.accepted == 0
            assert value(dispatcher, "clients_gone_total") == 1
            status, _, content = await call(app, "/health")
            assert status == 503 and json.loads(content)["status"] == "no worker"

    asyncio.run(check())
