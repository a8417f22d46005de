"""`lowbit translate`."""

import json
import sys
from collections.abc import Iterator
from itertools import count, islice
from typing import Annotated

import typer

from lowbit.data.lines import MOST_CHARACTERS, decoded_line

# So many batches are read before the first is translated: sentences of like lengths go together.
BATCHES = 32


def translate(
    model: Annotated[str, typer.Argument(help="A folder with an encoder–decoder.")],
    beams: Annotated[int, typer.Option(help="Beams; 1 is greedy.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Sentences at a time.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a translation.", show_default="the model's")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Text before each sentence; T5 needs one.")] = "",
    planes: Annotated[
        int | None,
        typer.Option(
            help="Compute with the first planes of nested binary codes.", show_default="all"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only translations.")] = False,
) -> None:
    """Translate lines from standard input to standard output; an empty line stays empty.

    Example: `lowbit translate ./out/bcq3-all < in.txt > out.txt`
    """
    from lowbit.conversion.planes import use_planes
    from lowbit.decoding.translator import Translator
    from lowbit.evaluation.evaluate import load_subject

    subject = load_subject(model)
    if planes is not None:
        use_planes(subject.model, planes)
    translator = Translator(
        subject.model, subject.needed_tokenizer(), beams, max_new_tokens, batch_size, prefix
    )
    talks = sys.stdin.isatty()
    lines = prompted() if talks and not quiet else sentences()
    first = 1
    while chunk := list(islice(lines, 1 if talks else BATCHES * batch_size)):
        found = translator(chunk, progress=not (talks or quiet or as_json))
        for cut in found.cut:
            print(
                f"line {first + cut.index}: {cut.tokens} tokens,"
                f" of which the model reads the first {cut.read}",
                file=sys.stderr,
            )
        for source, output in zip(chunk, found.outputs, strict=True):
            # One line in, one line out.
            text = " ".join(output.split("\n"))
            told = {"source": source, "output": text}
            print(json.dumps(told, ensure_ascii=False) if as_json else text)
        sys.stdout.flush()
        first += len(chunk)


def sentences() -> Iterator[str]:
    """The lines of standard input. Raises InputError with the number of one that is not UTF-8."""
    # A line that is longer than any may be is not read to its end.
    for number in count(1):
        line = sys.stdin.buffer.readline(4 * MOST_CHARACTERS + 8)
        if not line:
            return
        yield decoded_line(line, number, "standard input")


def prompted() -> Iterator[str]:
    """The same, asked for one by one."""
    lines = sentences()
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = next(lines, None)
        if line is None:
            return
        yield line
