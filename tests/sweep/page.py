"""What a sweep found: a report by kind of fault, docs/models.json, and docs/models.md from that."""

import json
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.sweep.walk import STEPS

KINDS = ("ok", "FAIL", "ERR", "refused", "n/a")
# Columns of the page, and the steps that a cell sums up: the worst of them is told.
COLUMNS = {
    "int8": ("int8",),
    "everything": ("int8_all", "int4_all"),
    "reload": ("reload", "int8_all_reload", "int4_all_reload"),
    "streaming": ("stream", "onload"),
    "dynamic": ("dynamic",),
    "dequantize": ("dequantize",),
    "bfloat16": ("bfloat16",),
    "padding": ("padding",),
    "generate": ("generate",),
    "attention": ("attention", "attention_float32"),
}
CELLS = {"ok": "✓", "n/a": "–", "refused": "refused", "ERR": "**raises**", "FAIL": "**wrong**"}
WORST = list(CELLS)
GROUPS = {
    "text": "Text",
    "image": "Images and video",
    "audio": "Sound",
    "time": "Series",
    "several": "Several kinds of input",
}

Row = dict[str, Any]


def kind(outcome: str) -> str:
    """The first word of an outcome: one of KINDS."""
    return re.split("[: ]", outcome, maxsplit=1)[0]


def counts(rows: Iterable[Row]) -> dict[str, Counter[str]]:
    """step -> how many classes have each kind of outcome."""
    found = {step: Counter[str]() for step in STEPS}
    for row in rows:
        for step, outcome in row["steps"].items():
            found.setdefault(step, Counter())[kind(outcome)] += 1
    return found


def report(rows: list[Row]) -> str:
    """Counts, then what is wrong, raises or is refused: clusters with their classes."""
    lines = [f"{len(rows)} classes, {sum(row['seconds'] for row in rows):.0f} s"]
    lines += [f"{step:20}{_counted(count)}" for step, count in counts(rows).items()]
    clusters: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for step, outcome in row["steps"].items():
            if kind(outcome) in ("FAIL", "ERR", "refused"):
                alike = re.sub(r"\d[\d.,e+-]*", "#", outcome.replace(row["class"], "CLASS"))
                alike = re.sub(r"other ids.*", "other ids", alike)
                found = clusters[kind(outcome), alike][row["class"]]
                found.append(step if kind(outcome) != "FAIL" else f"{step} {_number(outcome)}")
    order = sorted(clusters.items(), key=lambda item: (KINDS.index(item[0][0]), -len(item[1])))
    for (_, alike), classes in order:
        lines += ["", f"## {len(classes)} × {alike}"]
        lines += [f"- {name}: {', '.join(steps)}" for name, steps in sorted(classes.items())]
    return "\n".join(lines)


def _counted(count: Counter[str]) -> str:
    return "".join(f"{count[each]:7} {each}" for each in KINDS)


def _number(outcome: str) -> str:
    found = re.search(r"differs by ([\d.e+-]+|nan|inf)", outcome)
    return found[1].rstrip(";") if found else ""


def write(rows: list[Row], folder: Path, before: Path | None = None) -> None:
    """Write `folder`/models.json and models.md. before: lines of an older sweep, counted beside."""
    facts = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "date": date.today().isoformat(),
        "processor": _processor(),
    }
    if before is not None:
        old = [json.loads(line) for line in before.read_text().splitlines()]
        facts["before"] = {step: dict(count) for step, count in counts(old).items()}
    head = json.dumps(facts, ensure_ascii=False)[:-1]
    kept = sorted(map(_kept, rows), key=lambda row: (row["family"], row["class"]))
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in kept)
    (folder / "models.json").write_text(f'{head}, "classes": [\n{lines}\n]}}\n')
    (folder / "models.md").write_text(text(json.loads((folder / "models.json").read_text())))


def _kept(row: Row) -> Row:
    """A row in short: its steps are those that are not ok."""
    family, reads = row["type"], ""
    if row["steps"]["float"].startswith("ok"):
        model_class = getattr(transformers, row["class"])
        family, reads = model_class.__module__.split(".")[2], model_class.input_modalities
    return {
        "class": row["class"],
        "type": row["type"],
        "family": family,
        "reads": [reads] if isinstance(reads, str) else list(reads),
        "steps": {
            step: outcome[:160] for step, outcome in row["steps"].items() if kind(outcome) != "ok"
        },
    }


def _whole(row: Row) -> Row:
    """A row with all its steps again."""
    reached = STEPS if "float" not in row["steps"] else ()
    return row | {"steps": dict.fromkeys(reached, "ok") | row["steps"]}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def text(stored: dict[str, Any]) -> str:
    """docs/models.md from docs/models.json."""
    rows = [_whole(row) for row in stored["classes"]]
    built = [row for row in rows if row["steps"]["float"] == "ok"]
    sections = [_head(stored, len(rows), len(built)), _totals(built, stored.get("before"))]
    for key, title in GROUPS.items():
        if here := [row for row in built if _group(row) == key]:
            sections.append(f"## {title}\n\n{_table(here)}")
    sections.append(_unbuilt([row for row in rows if row not in built]))
    return "\n\n".join(sections) + "\n"


def _group(row: Row) -> str:
    reads = {"image" if each == "video" else each for each in row["reads"]}
    return reads.pop() if len(reads) == 1 else "several"


def _head(stored: dict[str, Any], classes: int, built: int) -> str:
    return f"""# Every model class of transformers

Made by `python -m tests.sweep`, then `python -m tests.sweep --page`; {stored["date"]},
transformers {stored["transformers"]}, torch {stored["torch"]}, {stored["processor"]}, one thread.
[models.json](models.json) says why.

transformers registers {classes} model classes; base models inside other classes are not counted.
{built} of them build at a tiny size with random weights and run in float32; the last section names
the others. Each goes through:

- **int8**: quantized in place. Its outputs are those of a float twin whose weights NumPy rounded,
  within a relative error of 1e-4.
- **everything**: the same for `int8-all` and `int4-all`, embeddings and heads too.
- **reload**: saved and loaded, equal bit for bit, all three recipes.
- **streaming**: `quantize_checkpoint`, and quantized while loading, equal to in place bit for bit.
- **dynamic**: `int8-dynamic`; the twin rounds its inputs.
- **dequantize**: equal to the twin.
- **bfloat16**: converted; at most four times as far from float32 as the twin in bfloat16, and 0.02.
- **padding**: a padded batch, equal to the twin.
- **generate**: `lowbit.generate` gives the token ids of transformers, or refuses before the first.
- **attention**: "lowbit" and "lowbit_float32" equal "eager".

✓ is right; *refused* is a sentence by lowbit instead of a result; – is what the class does not
have, or transformers alone does not do; **wrong** is another result, and **raises** an error that
is not lowbit's own."""


def _totals(built: list[Row], before: dict[str, dict[str, int]] | None) -> str:
    found = counts(built)
    old = " | before: wrong | before: raises" if before else ""
    lines = [f"| step | right | wrong | raises | refused | – |{old and old[2:] + ' |'}"]
    lines.append("|---|" + "---:|" * (7 if before else 5))
    for step in STEPS[1:]:
        line = f"| {step} | " + " | ".join(str(found[step][each]) for each in KINDS) + " |"
        if before:
            line += f" {before[step].get('FAIL', 0)} | {before[step].get('ERR', 0)} |"
        lines.append(line)
    if before:
        lines += [
            "",
            "*before*: counts of the first sweep, before the faults that it found were fixed.",
        ]
    return "## Counts\n\n" + "\n".join(lines)


def _table(rows: list[Row]) -> str:
    lines = [
        f"| family | classes | {' | '.join(COLUMNS)} |",
        "|---|---|" + ":-:|" * len(COLUMNS),
    ]
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        alike[row["family"], *_cells(row)].append(row["class"])
    for (family, *cells), classes in alike.items():
        lines.append(f"| {family} | {_names(classes)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    steps = row["steps"]
    worst = (max((kind(steps[s]) for s in names), key=WORST.index) for names in COLUMNS.values())
    return [CELLS[each] for each in worst]


def _names(classes: list[str]) -> str:
    """Class names; the first whole, of the others what follows the same stem."""
    first, *others = classes
    stem = re.match(r"(.*?)(For|Model|LMHead|With|Backbone|Encoder|$)", first)[1]
    return ", ".join([first, *(f"…{n[len(stem) :]}" if n.startswith(stem) else n for n in others)])


def _unbuilt(rows: list[Row]) -> str:
    lines = ["## Not built here", "", "What tests/sweep does not know how to build or to call.", ""]
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        why = row["steps"]["float"].removeprefix("n/a: ").replace("|", "\\|").replace("`", "'")
        alike[row["family"], why[:110]].append(row["class"])
    lines += [f"- {_names(classes)}: `{why}`" for (_, why), classes in alike.items()]
    return "\n".join(lines)
