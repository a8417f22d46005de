"""Results as columns of a table. A row without a result has null."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lowbit.pipelines.classification import Classifier
from lowbit.pipelines.embedding import Embedder
from lowbit.pipelines.generation import Generation
from lowbit.pipelines.pipeline import Pipeline
from lowbit.pipelines.tagging import Tagger
from lowbit.pipelines.translation import Translation


class Columns(ABC):
    """The columns that a job adds, for one pipeline."""

    @property
    @abstractmethod
    def fields(self) -> list[pa.Field]: ...

    @abstractmethod
    def arrays(self, results: Sequence[Any]) -> list[pa.Array]:
        """One for each field. A result is what the pipeline gives, or None."""


class Vectors(Columns):
    """embedding: fixed-size list of float32."""

    def __init__(self, pipeline: Embedder) -> None:
        self.width = pipeline.width

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field("embedding", pa.list_(pa.float32(), self.width))]

    def arrays(self, results: Sequence[Any]) -> list[pa.Array]:
        return [_lists(results, self.width)]


class Labels(Columns):
    """label and score, of the likeliest; score alone if the model has one output; scores, in the
    order of the model's labels, if several may be right."""

    def __init__(self, pipeline: Classifier) -> None:
        self.labels, self.exclusive = pipeline.labels, pipeline.exclusive

    @property
    def fields(self) -> list[pa.Field]:
        score = pa.field("score", pa.float32())
        if self.exclusive:
            return [pa.field("label", pa.string()), score]
        if len(self.labels) == 1:
            return [score]
        return [pa.field("scores", pa.list_(pa.float32(), len(self.labels)))]

    def arrays(self, results: Sequence[Any]) -> list[pa.Array]:
        if not self.exclusive and len(self.labels) > 1:
            return [_lists(results, len(self.labels))]
        scores = pa.array([None if r is None else r.max() for r in results], pa.float32())
        if not self.exclusive:
            return [scores]
        named = [None if r is None else self.labels[int(r.argmax())] for r in results]
        return [pa.array(named, pa.string()), scores]


class Texts(Columns):
    """One column of text, called as the pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.name = pipeline.kind

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field(self.name, pa.string())]

    def arrays(self, results: Sequence[Any]) -> list[pa.Array]:
        return [pa.array(results, pa.string())]


class WordLabels(Texts):
    """labels: those of a text's words, separated by blanks."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.name = "labels"


COLUMNS: dict[str, Any] = {
    Embedder.kind: Vectors,
    Classifier.kind: Labels,
    Tagger.kind: WordLabels,
    Translation.kind: Texts,
    Generation.kind: Texts,
}


def columns_of(pipeline: Pipeline) -> Columns:
    found: Columns = COLUMNS[pipeline.kind](pipeline)
    return found


def _lists(results: Sequence[Any], width: int) -> pa.Array:
    missing = np.array([result is None for result in results], dtype=bool)
    values = np.zeros((len(results), width), np.float32)
    for row, result in enumerate(results):
        if result is not None:
            values[row] = result
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), width, mask=pa.array(missing)
    )
