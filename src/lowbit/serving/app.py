"""The endpoints: what a request's body means for the model, and what its answer looks like."""

import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from lowbit.pipelines.classification import Classifier
from lowbit.pipelines.embedding import Embedder
from lowbit.pipelines.pipeline import Pipeline, Row
from lowbit.pipelines.translation import Translation
from lowbit.serving.dispatcher import Answers, Dispatcher
from lowbit.serving.limits import Limits
from lowbit.serving.messages import Document, Embed, Predict, Rerank, Translate
from lowbit.serving.problem import ProblemError


class Endpoints:
    """One method each. name: of the model, as answers have it.

    They return responses: FastAPI would look at every number of a dictionary.
    """

    def __init__(self, name: str, dispatcher: Dispatcher) -> None:
        self.name, self.dispatcher = name, dispatcher
        self.pipeline: Any = dispatcher.pipeline
        self.started = int(time.time())

    async def embeddings(self, body: Embed) -> JSONResponse:
        width = self.pipeline.width
        if body.dimensions not in (None, width):
            raise ProblemError(400, f"vectors have {width} numbers, not {body.dimensions}")
        answers = await self._answers(_texts(body.input))
        as_text = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if as_text else vector.tolist(),
            }
            for index, vector in enumerate(answers.results)
        ]
        return self._said(answers, object="list", data=data)

    async def rerank(self, body: Rerank) -> JSONResponse:
        texts = [d.text if isinstance(d, Document) else d for d in body.documents]
        scores, answers = await self._relevance(body.query, texts)
        order = np.argsort(-scores, kind="stable")[: body.top_n]
        results: list[dict[str, Any]] = [
            {"index": int(index), "relevance_score": float(scores[index])} for index in order
        ]
        if body.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        return self._said(answers, results=results)

    async def predict(self, body: Predict) -> JSONResponse:
        given = [body.input] if isinstance(body.input, str) else body.input
        rows = [(row,) if isinstance(row, str) else row for row in given]
        if len({len(row) for row in rows}) > 1:
            raise ProblemError(400, "inputs are mixed: all are texts, or all are pairs")
        answers = await self._answers(rows)
        labels = self.pipeline.labels
        data = [
            {
                "index": index,
                "label": labels[int(scores.argmax())],
                "scores": dict(zip(labels, scores.tolist(), strict=True)),
            }
            for index, scores in enumerate(answers.results)
        ]
        return self._said(answers, data=data)

    async def translate(self, body: Translate) -> JSONResponse:
        rows = _texts(body.input)
        answers = await self._answers(rows, empty="")
        data = [{"index": i, "translation": text} for i, text in enumerate(answers.results)]
        return self._said(answers, data=data)

    async def models(self) -> JSONResponse:
        about = {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "lowbit",
        }
        return JSONResponse({"object": "list", "data": [about]})

    async def health(self) -> JSONResponse:
        """200 while there is a worker."""
        workers = self.dispatcher.workers
        told = {"status": "ok" if workers else "no worker", "task": self.pipeline.kind}
        return JSONResponse({**told, "workers": workers}, 200 if workers else 503)

    async def metrics(self) -> Response:
        return Response(self.dispatcher.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _said(self, answers: Answers, **content: Any) -> JSONResponse:
        tokens = {"prompt_tokens": answers.tokens, "total_tokens": answers.tokens}
        return JSONResponse({**content, "model": self.name, "usage": tokens})

    async def _relevance(self, query: str, texts: list[str]) -> tuple[Any, Answers]:
        """A score for each text: a cross-encoder's, or the cosine of two vectors."""
        if isinstance(self.pipeline, Classifier):
            answers = await self._answers([(query, text) for text in texts])
            return np.array([scores[-1] for scores in answers.results]), answers
        answers = await self._answers([(text,) for text in (query, *texts)])
        vectors = np.stack(answers.results)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        return vectors[1:] @ vectors[0], answers

    async def _answers(self, rows: Sequence[Row], empty: Any = None) -> Answers:
        """Raises ProblemError for no rows, more than a request may have, and for rows without
        tokens unless `empty` stands for their results."""
        most = self.dispatcher.settings.inputs
        if not 1 <= len(rows) <= most:
            raise ProblemError(400, f"a request has 1 to {most:,} inputs, not {len(rows):,}")
        answers = await self.dispatcher.answer(rows)
        for index, result in enumerate(answers.results):
            if result is None:
                if empty is None:
                    raise ProblemError(400, f"input {index} has no token")
                answers.results[index] = empty
        return answers


def application(name: str, dispatcher: Dispatcher) -> Limits:
    """All endpoints that the model can serve, behind the limits."""
    endpoints = Endpoints(name, dispatcher)
    app = FastAPI(title=f"lowbit: {name}", openapi_url="/openapi.json", redoc_url=None)
    for method, paths, call in served(endpoints):
        for path in paths:
            app.add_api_route(path, call, methods=[method], response_model=None)
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    known = {path for _, paths, _ in served(endpoints) for path in paths}

    async def http(request: Request, error: Any) -> JSONResponse:
        told = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404:
            told += f"; this model serves {', '.join(sorted(known))}"
        return await _problem(request, ProblemError(error.status_code, told))

    app.add_exception_handler(HTTPException, http)
    return Limits(app, dispatcher.settings, dispatcher.metrics, known)


Served = tuple[str, tuple[str, ...], Callable[..., Awaitable[Any]]]


def served(endpoints: Endpoints) -> list[Served]:
    """Method, paths and function of each endpoint."""
    embeddings = ("POST", ("/v1/embeddings",), endpoints.embeddings)
    rerank = ("POST", ("/rerank", "/v1/rerank"), endpoints.rerank)
    predict = ("POST", ("/predict",), endpoints.predict)
    translate = ("POST", ("/translate",), endpoints.translate)
    by_kind: dict[str, list[Served]] = {
        Embedder.kind: [embeddings, rerank],
        Classifier.kind: [predict] + ([rerank] if ranks(endpoints.pipeline) else []),
        Translation.kind: [translate],
    }
    return [
        *by_kind[endpoints.pipeline.kind],
        ("GET", ("/v1/models",), endpoints.models),
        ("GET", ("/health",), endpoints.health),
        ("GET", ("/metrics",), endpoints.metrics),
    ]


def ranks(pipeline: Pipeline) -> bool:
    """Whether the last label can mean that two texts belong together."""
    return isinstance(pipeline, Classifier) and len(pipeline.labels) <= 2


def _texts(given: str | list[str]) -> list[Row]:
    return [(text,) for text in ([given] if isinstance(given, str) else given)]


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def _problem(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """The first thing that is wrong, and where; never what was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return await _problem(request, ProblemError(400, f"{place}: {first['msg']}"))
