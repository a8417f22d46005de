"""The plain data of help agrees with the tables, and no help waits for what computes."""

import subprocess
import sys
from dataclasses import fields

from lowbit.checkpoint.shards import MAX_SHARD_BYTES
from lowbit.cli import choices
from lowbit.cli.train_options import Files, Learning
from lowbit.demo import DemoSettings
from lowbit.evaluation.predict import PREDICTORS
from lowbit.evaluation.tasks import TASKS
from lowbit.interop.doors import DOORS
from lowbit.qat.prepare import QatOptions
from lowbit.schemes.named import NAMED, PER_TENSOR
from lowbit.search.costs import MEASURES
from lowbit.solvers import SOLVERS
from lowbit.training.bcq import PLANS
from lowbit.training.lesson import Pairs
from lowbit.training.settings import Settings

HELP = """
import sys
from lowbit.cli import VERBS, commands
import typer.testing

trained = ("glue", "squad", "token-classification", "language", "translation")
asked = [*([verb] for verb in VERBS), *(["train", task] for task in trained)]
for words in asked:
    for option, code in (("--help", 0), ("--no-such-option", 2)):
        arguments = [*words, option]
        if (words, option) == (["run"], "--no-such-option"):
            continue  # of the program that is run
        found = typer.testing.CliRunner().invoke(commands(arguments), arguments)
        assert found.exit_code == code, (arguments, found.output)
        heavy = {"torch", "transformers"} & set(sys.modules)
        assert not heavy, f"{arguments} imports {heavy}"
print(len(asked))
"""


def test_no_help_and_no_wrong_option_imports_torch_or_transformers():
    code = f"import sys; sys.argv = ['lowbit']; sys.modules['__main__'].__file__ = 'lowbit'\n{HELP}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_names_are_those_of_the_tables():
    assert choices.TASKS == tuple(TASKS)
    assert choices.BENCHMARKS == tuple(PREDICTORS)
    assert choices.SOLVERS == tuple(SOLVERS)
    assert choices.MEASURES == tuple(MEASURES)
    assert choices.PLANS == tuple(PLANS)
    assert choices.FORMATS == tuple(name for name, door in DOORS.items() if door.writer)
    assert choices.ROUNDINGS == (*PER_TENSOR, *NAMED)


def test_defaults_are_those_of_the_functions():
    usual, trained = QatOptions(), Settings()
    assert (usual.estimator, usual.ranges, usual.start) == (
        choices.ESTIMATOR,
        choices.RANGES,
        choices.QAT_START,
    )
    assert DemoSettings().steps == choices.DEMO_STEPS
    assert choices.SHARD_MEGABYTES * choices.MEGA == MAX_SHARD_BYTES
    assert Files().source_column == Pairs.source_column
    assert all(getattr(trained, f.name) == f.default for f in fields(Learning))
