"""Versions that lowbit was not tested with are told; those that it was are not."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest

from lowbit.versions import NEWEST_TESTED, UntestedVersionWarning, warn_of_untested

TESTED = {name: f"{version}.7" for name, version in NEWEST_TESTED.items()}
PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def numbers(version):
    return tuple(int(part) for part in version.split("."))


@pytest.mark.parametrize("package", NEWEST_TESTED)
def test_a_version_above_the_newest_tested_one_warns_once(package):
    major, minor = numbers(NEWEST_TESTED[package])
    newer = f"{major}.{minor + 1}.0.dev0+cpu"
    with pytest.warns(UntestedVersionWarning) as seen:
        warn_of_untested(TESTED | {package: newer})
    [warning] = seen
    assert f"{package} {newer} is newer than {NEWEST_TESTED[package]}" in str(warning.message)


def test_tested_versions_and_older_ones_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_untested(TESTED)
        warn_of_untested({name: "1.99.0" for name in NEWEST_TESTED})


@pytest.mark.parametrize("package", NEWEST_TESTED)
def test_the_newest_tested_version_is_one_that_may_be_installed(package):
    wanted = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    [bounds] = [line for line in wanted if re.match(rf"{package}[<>=]", line)]
    [lowest] = re.findall(r">=([\d.]+)", bounds)
    [end] = re.findall(r"<([\d.]+)", bounds)
    assert numbers(lowest) <= numbers(NEWEST_TESTED[package]) < numbers(end)
