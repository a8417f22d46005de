"""`lowbit infer`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowbit.checkpoint.atomic_write import check_file, staged_file
from lowbit.checkpoint.work_folder import claimed
from lowbit.cli.choices import BENCHMARKS
from lowbit.cli.job_options import JobOptions
from lowbit.cli.screen import say
from lowbit.cli.spread import spread
from lowbit.cli.train_options import refuse, typed
from lowbit.errors import check_choice

# What a table can be inferred for; benchmarks have files of their own.
OF_TABLES = ("classification", "token-classification", "translation", "generation")


@spread
def infer(
    model: Annotated[str, typer.Argument(help="A folder with a model, float or integer.")],
    data: Annotated[
        str, typer.Option("--data", "--data-dir", help="A table with texts, or the task's files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    table: JobOptions,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(OF_TABLES)}; or a benchmark: {', '.join(BENCHMARKS)}.",
            show_default="what the model is made for",
        ),
    ] = None,
    pair: Annotated[
        str | None, typer.Option("--pair-column", help="The column with second texts.")
    ] = None,
    beams: Annotated[int | None, typer.Option(help="Beams of a translation; 1 is greedy.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a translation or a continuation.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Text before each text to translate; T5 needs one.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat", help="Each text is a message: use the tokenizer's chat template."),
    ] = None,
    subset: Annotated[
        str, typer.Option("--name", help="The GLUE task: cola, mrpc, …", show_default="the model's")
    ] = "",
    split: Annotated[
        str | None,
        typer.Option(
            help="test, dev or train. No labels needed.", show_default="test; dev for squad"
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an input; as in training.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens that two windows of SQuAD share.")
    ] = None,
) -> None:
    """Write what a model says of each text of a table: labels, translations, continuations.

    A job that was killed goes on where it was if the same command is given again. With --task glue
    or squad it writes predictions in the form of GLUE (index and prediction) or SQuAD (JSON).

    Example: `lowbit infer ./classifier --data docs.parquet --column text -o labels.parquet`

    Example: `lowbit infer ./out/int8 --task glue --name mrpc --data-dir ./MRPC -o MRPC.tsv`
    """
    from lowbit.evaluation.evaluate import load_subject
    from lowbit.evaluation.predict import PREDICTORS, predict

    of_benchmarks: dict[str | None, dict[str, Any]] = {
        "glue": {"name": subset or None},
        "squad": {"stride": stride},
    }
    of_tables = {
        "beams": beams,
        "max_new_tokens": max_new_tokens,
        "prefix": prefix,
        "chat": chat,
    }
    if task is not None:
        check_choice("task", task, (*OF_TABLES, *PREDICTORS))
    own = _given(of_benchmarks.pop(task, {}))
    for benchmark, others in of_benchmarks.items():
        refuse(_given(others), f"is of --task {benchmark}")
    if task not in PREDICTORS:
        refuse(_given({"split": split}), f"is of the benchmarks: --task {' or '.join(PREDICTORS)}")
        options = {**of_tables, "max_length": max_length}
        table.run(model, Path(data), output, task, options, pair)
        return
    refuse(
        typed(table, "overwrite", "quiet") | _given({**of_tables, "pair_column": pair}),
        f"is of tables: --task {task} reads the benchmark's files",
    )
    check_file(output, table.overwrite)
    own |= _given({"max_length": max_length})
    with claimed(output):
        subject = load_subject(model)
        lines = list(predict(task, subject, data, split, not table.quiet, **own))
        with staged_file(output) as unfinished:
            unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not table.quiet:
        say(f"written: {output}")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
