"""python -m tests.campaign: damaged files of every kind through every verb that reads them.

python -m tests.campaign --count 10000            # cases 0 … 9999
python -m tests.campaign --first 137 --count 1    # one case again
python -m tests.campaign --count 10000 --out cases.jsonl --resume    # on from where it was stopped
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="without verbs that take seconds")
    parser.add_argument("--only", help="cases of this file alone")
    parser.add_argument("--out", type=Path, help="a line of JSON for each case")
    parser.add_argument("--resume", action="store_true", help="without the cases that are in --out")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from tests.campaign.runner import Outcome, campaign, case, table, wrong
    from tests.campaign.specimens import make_all

    numbers = range(options.first, options.first + options.count)
    if options.only:
        numbers = [n for n in numbers if case(n, options.quick).target.name == options.only]
    found = []
    if options.resume and options.out and options.out.exists():
        lines = options.out.read_text().splitlines()
        found = [Outcome(**json.loads(line)) for line in lines]
        done = {one.case for one in found}
        numbers = [n for n in numbers if n not in done]
    with tempfile.TemporaryDirectory() as folder:
        make_all(Path(folder))
        for one in campaign(Path(folder), numbers, options.quick):
            found.append(one)
            if options.out:
                with options.out.open("a") as kept:
                    kept.write(json.dumps(asdict(one)) + "\n")
            for line in wrong([one]):
                print(line, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
