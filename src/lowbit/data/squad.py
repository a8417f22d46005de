"""Questions about paragraphs, in the JSON of SQuAD 1.1 (Rajpurkar et al. 2016).

    {"data": [{"paragraphs": [{"context": text,
                               "qas": [{"id": text, "question": text,
                                        "answers": [{"text": text, "answer_start": n}, …]}, …]}]}]}

An answer is the piece of its context that starts at character n, counted from 0.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.data.lines import check_length, read_text
from lowbit.data.split_file import split_file
from lowbit.errors import InputError

# SQuAD's own training set has 30 MB.
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Answer:
    text: str
    start: int


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SquadData:
    source: str
    questions: tuple[Question, ...]

    def check_answers(self) -> None:
        """Raises InputError where a question has none to learn from or be scored against."""
        for question in self.questions:
            if not question.answers:
                raise InputError(
                    f"{self.source}, question {question.id} has no answers; SQuAD 1.1 has at least"
                    " one for each"
                )


def read(data: str | Path, split: str = "dev") -> SquadData:
    """All questions of a file, or of the file of a folder whose name starts with the split's
    (dev-v1.1.json); those of a test set may have no answers. Raises InputError."""
    file = split_file(Path(data), [f"{split}*.json"])
    if file.is_file() and file.stat().st_size > MOST_BYTES:
        raise InputError(f"{file} has {file.stat().st_size} bytes; at most {MOST_BYTES} are read")
    try:
        stored = json.loads(read_text(file))
    except RecursionError as error:
        raise InputError(f"{file} is not a SQuAD file: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except InputError:
        raise
    except ValueError as error:
        # An integer of more digits than Python converts.
        raise InputError(f"{file} is not JSON that can be read: {error}") from error
    questions: list[Question] = []
    for a, article in enumerate(_member(stored, "data", list, str(file))):
        where = f"{file}, article {a + 1}"
        for p, paragraph in enumerate(_member(article, "paragraphs", list, where)):
            at = f"{where}, paragraph {p + 1}"
            context = _member(paragraph, "context", str, at)
            check_length(context, at)
            qas = _member(paragraph, "qas", list, at)
            questions += (
                _question(stored, context, f"{at}, question {q + 1}")
                for q, stored in enumerate(qas)
            )
    if not questions:
        raise InputError(f"{file} has no questions")
    return SquadData(str(file), tuple(questions))


def _question(stored: Any, context: str, where: str) -> Question:
    identity = _member(stored, "id", str, where)
    where = f"{where} ({identity})"
    question = _member(stored, "question", str, where)
    answers = _member(stored, "answers", list, where) if "answers" in stored else []
    found = tuple(_answer(answer, context, where) for answer in answers)
    return Question(identity, question, context, found)


def _answer(stored: Any, context: str, where: str) -> Answer:
    text = _member(stored, "text", str, where)
    start = _member(stored, "answer_start", int, where)
    if start < 0 or not context.startswith(text, start):
        there = context[start : start + len(text)] if start >= 0 else ""
        raise InputError(
            f"{where}: the context has {there!r} at character {start}, not the answer {text!r}"
        )
    return Answer(text, start)


def _member(holder: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(holder, dict) or key not in holder:
        raise InputError(f"{where} has no {key!r}, which SQuAD's layout needs")
    value = holder[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {key!r} is of type {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, str) and not _is_text(value):
        raise InputError(
            f"{where}: {key!r} holds half of a surrogate pair, which is not a character"
        )
    return value


def _is_text(value: str) -> bool:
    """JSON can say what no encoding can write, and no tokenizer reads."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
