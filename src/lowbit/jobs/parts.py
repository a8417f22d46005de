"""Finished parts beside the output, so that a job that was killed goes on from there.

    OUT.parts/
        job.json               of which job: model, data, columns, options
        000003-000012.arrow    chunk 12 of span 3, once it is whole

A rerun of the same job reads what is there and computes the rest; any other job is refused once
there is a part, unless it may overwrite. At the end the parts become OUT, and the folder goes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from lowbit.checkpoint.atomic_write import staged_file
from lowbit.checkpoint.documents import read_json, reading
from lowbit.checkpoint.work_folder import tidy
from lowbit.errors import InputError, UsageError

SUFFIX = ".parts"
CUT = b"cut"  # in a part's metadata: how many of its rows were longer than the model reads


class Parts:
    """Those of one output, in any process that sees its folder."""

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(output.name + SUFFIX)

    def begin(self, job: Mapping[str, Any], overwrite: bool = False) -> None:
        """Take the folder for a job; overwrite: and remove the parts of another.

        Raises UsageError if the folder holds parts of another job, InputError if it cannot be made.
        """
        file = self.folder / "job.json"
        tidy(self.folder)  # first: a job may have been killed while it wrote job.json
        if file.is_file():
            before = read_json(file)
            before = before if isinstance(before, dict) else {}
            other = [key for key in job if before.get(key) != job[key]]
            if other and not overwrite and self._files():
                raise UsageError(
                    f"{self.folder} holds parts of another job, which differs in"
                    f" {', '.join(other)}: give what that job had, or --overwrite to begin anew"
                )
            if not other:
                return
            for part in self._files():
                part.unlink()
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UsageError(f"{self.folder} is not empty and holds no parts of a job")
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be created: {error.strerror}") from error
        with staged_file(file) as unfinished:
            unfinished.write_text(json.dumps(job), encoding="utf-8")

    def has(self, span: int, chunk: int) -> bool:
        return self._file(span, chunk).is_file()

    def write(self, span: int, chunk: int, table: pa.Table, cut: int) -> None:
        """All or nothing, whenever the process is killed."""
        schema = table.schema.with_metadata({CUT: str(cut).encode()})
        with (
            staged_file(self._file(span, chunk)) as unfinished,
            pa.ipc.new_file(unfinished, schema) as opened,
        ):
            opened.write_table(table.replace_schema_metadata(schema.metadata))

    def rows(self, span: int, chunk: int) -> int:
        with self._opened(self._file(span, chunk)) as opened:
            return sum(opened.get_batch(n).num_rows for n in range(opened.num_record_batches))

    def read(self) -> Iterator[tuple[pa.Table, int]]:
        """All parts in order, each with its number of rows that were cut."""
        for file in self._files():
            with reading(f"the part {file}", "read"), self._opened(file) as opened:
                table = opened.read_all()
            cut = int((table.schema.metadata or {}).get(CUT, 0))
            yield table.replace_schema_metadata(None), cut

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def kept_if_any(self) -> Iterator[None]:
        """The folder goes if an error ends the job before its first part."""
        try:
            yield
        except BaseException:
            # Anything but job.json is a part, or becomes one in a process that still runs.
            if [each.name for each in self.folder.iterdir()] == ["job.json"]:
                self.remove()
            raise

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow"))

    def _file(self, span: int, chunk: int) -> Path:
        return self.folder / f"{span:06}-{chunk:06}.arrow"

    def _opened(self, file: Path) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(file)))
