"""What `lowbit embed` and `lowbit infer` share: a table in, a table out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from lowbit.cli.screen import say
from lowbit.errors import UsageError, check_choice
from lowbit.extras import needed

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class JobOptions:
    PANEL: ClassVar[str] = "Table"

    column: Annotated[
        str | None,
        typer.Option(help="The column of --data with the texts.", show_default="text"),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(help="Columns that the output keeps, with commas.", show_default="all"),
    ] = None
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a batch.", show_default="1024")
    ] = None
    part_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows that are computed again at most if the job is killed.", show_default="4096"
        ),
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(help="local, or ray for the processes of a cluster.", show_default="local"),
    ] = None
    workers: Annotated[
        int | None, typer.Option(help="Processes of --engine ray.", show_default="2")
    ] = None
    threads: Annotated[
        int | None, typer.Option(help="Threads of each of them.", show_default="1")
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an output that exists, or parts of another job."),
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.")] = False

    def run(
        self,
        model: str,
        data: Path,
        output: Path,
        kind: str | None,
        options: Mapping[str, Any],
        pair: str | None = None,
    ) -> None:
        """Run the job, and say what came of it."""
        needed("pyarrow", "pyarrow", "jobs")
        from lowbit.jobs.job import Job
        from lowbit.jobs.run import Engine, here, run
        from lowbit.report.wording import plural

        engine = self.engine or ENGINES[0]
        check_choice("engine", engine, ENGINES)
        if engine == "local" and (self.workers or self.threads):
            raise UsageError("--workers and --threads are of --engine ray")
        sizes = {"tokens": self.batch_tokens, "part_rows": self.part_rows}
        job = Job(
            model,
            data,
            self.column or "text",
            output,
            kind,
            dict(options),
            pair,
            None if self.keep is None else tuple(filter(None, self.keep.split(","))),
            **{name: size for name, size in sizes.items() if size is not None},
        )
        chosen: Engine = here
        if engine == "ray":
            from lowbit.jobs.on_ray import on_ray

            chosen = on_ray(self.workers or 2, self.threads or 1)
        found = run(job, chosen, self.overwrite, not self.quiet)
        if self.quiet:
            return
        say(f"written: {output}, {plural(found.rows, 'row')} in {found.seconds:.0f} s")
        if found.cut:
            say(f"{plural(found.cut, 'row')} with more tokens than the model reads: cut.")
        if found.missing:
            say(f"{plural(found.missing, 'row')} without text: no result.")
