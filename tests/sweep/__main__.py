"""python -m tests.sweep: every model class of transformers, tiny and random, through lowbit.

python -m tests.sweep                      # all classes; goes on where a killed run stopped
python -m tests.sweep --only 'gpt2|.*Llama.*'
python -m tests.sweep --part 0/2           # every second class; --out makes files of their own
python -m tests.sweep --report             # counts, and what is wrong, by kind
python -m tests.sweep --page               # docs/models.json and docs/models.md
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from tests.sweep.classes import registered

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sweep.jsonl")
    parser.add_argument("--only", default=".*", help="model classes or types, a whole match")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th class, from the I-th")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one class")
    parser.add_argument("--again", default="", help="run rows anew whose line matches")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--before", type=Path, help="with --page: an older sweep to count beside")
    options = parser.parse_args()
    if options.report or options.page:
        from tests.sweep import page

        found = read(options.out)
        if options.report:
            print(page.report(found))
        else:
            page.write(found, ROOT / "docs", options.before)
        return
    run(options)


def run(options: argparse.Namespace) -> None:
    from tests.sweep.server import prepare, rows

    os.nice(10)
    prepare()
    done = {}
    for row in read(options.out) if options.out.exists() else []:
        if not (options.again and re.search(options.again, json.dumps(row))):
            done[row["class"]] = row
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in done.values()))
    first, step = map(int, options.part.split("/"))
    todo = [
        each
        for each in registered()
        if re.fullmatch(options.only, each.model_class)
        or re.fullmatch(options.only, each.model_type)
    ][first::step]
    todo = [each for each in todo if each.model_class not in done]
    with options.out.open("a") as file:
        for number, row in enumerate(rows(todo, limit=options.limit), 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(
                f"{number}/{len(todo)} {row['class']} {row['seconds']} s: {told(row)}", flush=True
            )


def told(row: dict[str, Any]) -> str:
    """A row in a line: what went wrong, or why it does not run, or ok."""
    outcomes = row["steps"]
    wrong = [f"{step} {o}" for step, o in outcomes.items() if o.startswith(("FAIL", "ERR"))]
    if wrong:
        return "; ".join(wrong)
    return outcomes["float"] if not outcomes["float"].startswith("ok") else "ok"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
