"""What a result has to say about the machine and the code it was measured with."""

import subprocess
from pathlib import Path

import torch

from lowbit.environment import processor


def commit() -> str:
    told = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]
    return subprocess.run(told, capture_output=True, text=True).stdout.strip() or "unknown"


def described() -> str:
    """One line: processor, threads, commit and torch."""
    return (
        f"Processor: {processor()}, {torch.get_num_threads()} threads; lowbit {commit()},"
        f" torch {torch.__version__}."
    )
