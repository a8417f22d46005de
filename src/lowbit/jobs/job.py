"""What is asked of a batch job."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.checkpoint.documents import check_regular, reading
from lowbit.checkpoint.read import find
from lowbit.errors import check_at_least

PART_ROWS = 4096


@dataclass(frozen=True)
class Job:
    """A model over a column of a table.

    model: folder or hub id. data, output: tables; their suffixes say of which kind. column: the
    texts. pair: the second text of each row. kind: of the pipeline, None for what the model is made
    for; options: the pipeline's own. keep: columns of `data` that go into `output`, None for all.
    tokens: of a batch. part_rows: rows that a killed job computes again at most.

    Raises UsageError for numbers below 1.
    """

    model: str
    data: Path
    column: str
    output: Path
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pair: str | None = None
    keep: tuple[str, ...] | None = None
    tokens: int = 1024
    part_rows: int = PART_ROWS

    def __post_init__(self) -> None:
        check_at_least("tokens of a batch", self.tokens, 1)
        check_at_least("rows of a part", self.part_rows, 1)

    def identity(self) -> dict[str, Any]:
        """All that decides the output, as JSON: the same for a rerun that may go on."""
        about = self.data.stat()
        options = {name: value for name, value in self.options.items() if value is not None}
        return {
            "model": _hash(find(self.model)),
            "data": [str(self.data.resolve()), about.st_size, about.st_mtime_ns],
            "column": [self.column, self.pair],
            "task": self.kind,
            "options": options,
            "choice of columns": None if self.keep is None else list(self.keep),
            "part size": self.part_rows,
        }


def _hash(folder: Path) -> str:
    """Of all files of a model."""
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with reading(file, "read"):
            check_regular(file)
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        found.update(f"{file.relative_to(folder)} {content}\n".encode())
    return found.hexdigest()
