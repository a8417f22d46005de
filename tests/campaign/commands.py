"""python -m tests.campaign.commands: damaged files through `lowbit` in a process of its own.

What no fork of a running process shows: signals, exit codes, and what is printed at exit. A command
takes seconds; --out and --resume go on from where a run was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.campaign.runner import OBEYED, Case, case, damage
from tests.campaign.specimens import copy, make_all

MODELS, FOREIGN = ("int4", "float", "static"), ("gptq", "awq", "compressed", "gguf")
# A verb, the folders that it reads, and its options.
VERBS = {
    "inspect": (MODELS, ()),
    "eval": (MODELS, ("--task", "perplexity", "--data", "data/text.txt")),
    "quantize": (MODELS, ("-o", "out")),
    "import": (FOREIGN, ("-o", "out")),
}
FIRST = 10**6  # cases that no campaign takes


def cases(verb: str) -> Iterator[Case]:
    """Those whose folder the verb reads."""
    folders, _ = VERBS[verb]
    return (one for one in map(case, range(FIRST, 10 * FIRST)) if one.target.folder in folders)


def faults(verb: str, one: Case, specimens: Path, place: Path) -> list[str]:
    """What is wrong with how the command ends; the files are put into `place`."""
    copy(specimens, place)
    folder = place / one.target.folder
    damage(one, folder / one.target.file)
    read = folder / one.target.file if one.target.folder == "gguf" else folder
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "lowbit", verb, read, *VERBS[verb][1]],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=place,
        env=environment,
    )
    lines = done.stderr.strip().splitlines()
    last = lines[-1] if lines else ""
    canaries = [at for at in (place, folder) if (at / "CANARY").exists()]
    wrong = {
        f"exit code {done.returncode}": done.returncode not in (0, 1, 2),
        "a traceback": "Traceback" in done.stderr or "did not expect" in done.stderr,
        "no sentence": done.returncode == 1 and not last.startswith("error: "),
        "orders to the terminal": OBEYED.search(done.stdout + last) is not None,
        "code": bool(canaries),
        "half an output": done.returncode != 0 and (place / "out").exists(),
    }
    return [f"{what}: {done.stderr[-500:]}" for what, found in wrong.items() if found]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.commands")
    parser.add_argument("--count", type=int, default=300, help="of all verbs together")
    parser.add_argument("--out", type=Path, help="a line of JSON for each command")
    parser.add_argument("--resume", action="store_true", help="without those that are in --out")
    options = parser.parse_args()
    known = options.out.read_text() if options.resume and options.out.exists() else ""
    found = {tuple(told[:2]): told[2] for told in map(json.loads, known.splitlines())}
    each = options.count // len(VERBS)
    with tempfile.TemporaryDirectory() as work:
        specimens = Path(work) / "specimens"
        specimens.mkdir()
        make_all(specimens)
        # One of each verb after the other, so that a part of a run has something of all.
        for turn in zip(*(islice(cases(verb), each) for verb in VERBS), strict=True):
            for verb, one in zip(VERBS, turn, strict=True):
                if (verb, one.number) in found:
                    continue
                with tempfile.TemporaryDirectory(dir=work) as place:
                    told = faults(verb, one, specimens, Path(place) / "files")
                found[verb, one.number] = told
                if options.out:
                    with options.out.open("a") as kept:
                        kept.write(json.dumps([verb, one.number, told]) + "\n")
                for line in told:
                    print(f"{verb} {one.number}: {one.target.name}: {line}", flush=True)
    print(f"{len(found)} commands, {sum(map(bool, found.values()))} with faults")
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
