import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.formats import CHANNEL, TENSOR, group
from lowbit.schemes import (
    SCHEMES,
    Absmax,
    Binary,
    Clustered,
    KQuant,
    Scheme,
    ZeroPoint,
    scheme_from_dict,
    scheme_to_dict,
)

rows = st.just(CHANNEL) | st.integers(2, 65536).map(group)
schemes = st.one_of(
    st.builds(
        Absmax, st.integers(2, 8), rows | st.just(TENSOR), st.sampled_from(["absmax", "minmax"])
    ),
    st.builds(ZeroPoint, st.integers(2, 8), rows | st.just(TENSOR)),
    st.builds(
        Binary,
        bits=st.integers(1, 4),
        granularity=rows,
        offset=st.booleans(),
        solver=st.sampled_from(["greedy", "alternating"]),
        iterations=st.integers(0, 1000),
        nested=st.booleans(),
    ),
    st.builds(KQuant, bits=st.integers(2, 6)),
    st.builds(
        Clustered,
        base=st.builds(Binary, st.just(4), rows, nested=st.booleans()),
        clusters=st.integers(1, 4),
        ratio=st.integers(1, 64) | st.floats(1 / 64, 64),
    ),
)


@given(schemes)
def test_a_scheme_comes_back_from_its_dict(scheme):
    stored = scheme_to_dict(scheme)
    assert scheme_from_dict(stored) == scheme
    assert all(type(value) in (int, float, bool, str) for value in stored.values())


def test_every_scheme_is_in_the_table_under_its_own_name():
    assert SCHEMES == {
        "absmax": Absmax,
        "zero-point": ZeroPoint,
        "k-quant": KQuant,
        "binary": Binary,
        "clustered": Clustered,
    }
    assert all(isinstance(scheme(), Scheme) for scheme in SCHEMES.values())


def test_options_left_out_have_their_defaults():
    assert scheme_from_dict({"scheme": "binary"}) == Binary()
    assert scheme_to_dict(Binary()) == {
        "scheme": "binary",
        "bits": 3,
        "granularity": "group:64",
        "offset": True,
        "solver": "alternating",
        "iterations": 15,
        "nested": False,
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "scheme None is unknown: use absmax, zero-point, k-quant, binary, clustered"),
        ({"scheme": "ternary"}, "scheme 'ternary' is unknown"),
        ({"scheme": ["absmax"]}, "is unknown"),
        ({"scheme": "absmax", "bit": 8}, "has no option 'bit': use bits, granularity, range"),
        ({"scheme": "zero-point", "nested": True}, "scheme zero-point has no option 'nested'"),
        ({"scheme": "absmax", "name": "x"}, "has no option 'name'"),
        ({"scheme": "absmax", "bits": "8"}, "option bits of scheme absmax takes int, not '8'"),
        ({"scheme": "absmax", "bits": 8.0}, "takes int, not 8.0"),
        ({"scheme": "absmax", "bits": True}, "takes int, not True"),
        ({"scheme": "binary", "nested": 1}, "option nested of scheme binary takes bool, not 1"),
        ({"scheme": "binary", "solver": ["greedy"]}, "takes str"),
        ({"scheme": "absmax", "bits": 1}, "bits 1 is outside 2 … 8"),
        ({"scheme": "absmax", "granularity": 64}, "granularity '64' is unknown"),
        ({"scheme": "absmax", "granularity": None}, "granularity 'None' is unknown"),
        ({"scheme": "binary", "granularity": "tensor"}, "not per tensor"),
        ({"scheme": "clustered", "granularity": "tensor"}, "not per tensor"),
        ({"scheme": "clustered", "ratio": "2"}, "ratio of scheme clustered takes float or int"),
        ({"scheme": "clustered", "ratio": True}, "takes float or int, not True"),
    ],
)
def test_what_a_scheme_does_not_know_is_a_usage_error(options, message):
    with pytest.raises(UsageError, match=message):
        scheme_from_dict(options)
