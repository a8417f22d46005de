"""Bars are for people who look at them."""

import io

import pytest

from lowbit.progress import hidden


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "is_hidden"),
    [(Terminal, True, False), (Terminal, False, True), (io.StringIO, True, True)],
)
def test_a_bar_is_hidden_unless_it_goes_to_a_terminal(monkeypatch, stream, shown, is_hidden):
    monkeypatch.setattr("sys.stderr", stream())
    monkeypatch.delitem(__import__("sys").modules, "ipykernel", raising=False)
    assert hidden(shown) is is_hidden
