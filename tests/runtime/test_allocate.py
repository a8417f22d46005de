"""Memory that matrices share: none that is needed is written over, and little is unused."""

from hypothesis import given
from hypothesis import strategies as st

from lowbit.runtime.allocate import ALIGNMENT, Need, aligned, allocated

NEEDS = st.lists(
    st.tuples(st.integers(1, 100), st.integers(0, 20), st.integers(0, 8)), max_size=30
).map(lambda rows: [Need(n, c, b, b + more) for n, (c, b, more) in enumerate(rows)])


@given(NEEDS)
def test_what_is_needed_at_once_lies_apart(needs):
    firsts = allocated(needs)
    assert firsts.keys() == {need.matrix for need in needs}
    for step in range(30):
        owners = [
            column
            for need in needs
            if need.begins <= step <= need.ends
            for column in range(firsts[need.matrix], firsts[need.matrix] + need.columns)
        ]
        assert len(owners) == len(set(owners))
    assert all(first % ALIGNMENT == 0 for first in firsts.values())


@given(NEEDS)
def test_no_matrix_could_lie_lower(needs):
    """Each is at 0 or right after one that is needed at the same time."""
    firsts = allocated(needs)
    by_matrix = {need.matrix: need for need in needs}
    for need in needs:
        first = firsts[need.matrix]
        ends = {
            firsts[m] + aligned(other.columns)
            for m, other in by_matrix.items()
            if m != need.matrix and other.begins <= need.ends and need.begins <= other.ends
        }
        assert first == 0 or first in ends


def test_a_feed_forward_layer_needs_its_widest_three():
    """x [96] -> wide [384] -> y [96], x being added again: nothing lies beside these."""
    needs = [Need(0, 96, 0, 3), Need(1, 384, 1, 2), Need(2, 96, 2, 3)]
    firsts = allocated(needs)
    assert max(firsts[n.matrix] + n.columns for n in needs) == 96 + 384 + 96
