"""python -m tests.campaign: damaged files of every kind through every verb that reads them.

python -m tests.campaign --count 10000            # cases 0 … 9999
python -m tests.campaign --first 137 --count 1    # one case again
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
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from tests.campaign.runner import campaign, case, table, wrong
    from tests.campaign.specimens import make_all

    numbers = range(options.first, options.first + options.count)
    if options.only:
        numbers = [n for n in numbers if case(n, options.quick).target.name == options.only]
    with tempfile.TemporaryDirectory() as folder:
        make_all(Path(folder))
        found = []
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
