"""Settings that no service can have are refused."""

import math

import pytest

from lowbit.errors import UsageError
from lowbit.serving.settings import Settings


@pytest.mark.parametrize("name", ["timeout", "slow", "grace"])
def test_seconds_that_are_no_number_are_refused(name):
    with pytest.raises(UsageError, match="must be at least [01], not nan"):
        Settings(**{name: math.nan})
