"""The newest versions of what lowbit leans on most that its tests have passed with."""

import warnings
from collections.abc import Mapping

import torch
import transformers

# scripts/test-versions tells when these can rise. The oldest are the lower ends in pyproject.toml.
NEWEST_TESTED = {"torch": "2.13", "transformers": "5.24"}


class UntestedVersionWarning(UserWarning):
    """A package is newer than all that lowbit was tested with."""


def warn_of_untested(installed: Mapping[str, str] | None = None) -> None:
    """One UntestedVersionWarning for each package that is newer than its newest tested version.

    installed: package -> version; by default those of this process.
    """
    if installed is None:
        installed = {"torch": torch.__version__, "transformers": transformers.__version__}
    for package, newest in NEWEST_TESTED.items():
        if _minor(installed[package]) > _minor(newest):
            warnings.warn(
                f"{package} {installed[package]} is newer than {newest}, the newest that lowbit was"
                f' tested with. If something fails, try: pip install "{package}~={newest}.0"',
                UntestedVersionWarning,
                stacklevel=3,
            )


def _minor(version: str) -> tuple[int, int]:
    """ "2.13.0+cpu" -> (2, 13)"""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
