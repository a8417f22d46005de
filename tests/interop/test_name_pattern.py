"""Patterns of names match what `re` matches, in a time that no pattern makes long."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.interop.name_pattern import NamePattern

NAMES = (
    "lm_head",
    "model.layers.3.self_attn.q_proj",
    "model.layers.31.mlp.down_proj",
    "model.layers.31.mlp.experts.7.w1",
    "model.layers.3.mlp.gate",
    "mtp.layers.3.mlp.gate",
    "visual.blocks.0.attn.qkv",
)
# As llm-compressor and those who configure vLLM write them.
WRITTEN = (
    r".*lm_head",
    r".*self_attn.*_proj$",
    r".*self_attn[.](q|k|v|o)_proj$",
    r".*\.mlp\.experts\..*",
    r".*mlp\.experts(?:\..*)?$",
    r".*layers\.(3|31)\..*",
    r".*layers\.[0-9]+\.mlp\.experts\.\d+\.(w1|w3)$",
    r"^model\.layers\.\d+\.mlp",
    r"^(?!mtp\.).*layers\.\d+\.mlp\.gate$",
    r"visual.*",
    r"experts.*\.w[12]",
    r"model.layers.\d*$",
)


@pytest.mark.parametrize("text", WRITTEN)
def test_what_others_write_matches_the_names_that_they_mean(text):
    pattern = NamePattern.parse(text)
    for name in NAMES:
        assert pattern.matches(name) == bool(re.match(text, name)), name


CHARACTERS = st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"[\w.]", r"\d", r"\W", "_"])
PIECES = st.builds(str.__add__, CHARACTERS, st.sampled_from(["", "", "*", "+", "?", "*?", "+?"]))
PATTERNS = st.recursive(
    PIECES | st.sampled_from("^$"),
    lambda inner: st.builds(
        lambda start, branches, end: start + "|".join(map("".join, branches)) + end,
        st.sampled_from(["(", "(?:", "(?=", "(?!"]),
        st.lists(st.lists(inner, max_size=3), min_size=1, max_size=3),
        st.just(")"),
    ),
)


@given(st.lists(PATTERNS, max_size=5).map("".join), st.text("ab._1\n", max_size=8))
def test_a_pattern_matches_what_re_matches(text, name):
    assert NamePattern.parse(text).matches(name) == bool(re.match(text, name))


@given(st.lists(PIECES, max_size=3).map("".join), st.text("ab.1", max_size=6))
def test_an_optional_group_matches_what_re_matches(inner, name):
    text = f"a({inner}|b)?b$"
    assert NamePattern.parse(text).matches(name) == bool(re.match(text, name))


@pytest.mark.parametrize(
    "text",
    [
        "a?" * 30 + "a" * 30 + "$",
        ".*a.*a.*a.*a.*a.*ac",
        ".*" * 99 + "c",
        "(?=" * 20 + ".*.*.*c" + ")" * 20,
        "(" * 60 + "a?a*a+c" + ")?" * 60,
    ],
)
def test_no_pattern_takes_long(text):
    """`re` takes from minutes to centuries for some of these."""
    start = time.monotonic()
    assert not NamePattern.parse(text + "$").matches("a" * 200 + "b")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(", "not a valid pattern: missing"),
        ("a**", "not a valid pattern: multiple repeat"),
        ("a{99999999999999999999}", "not a valid pattern: the repetition number is too large"),
        ("(a+)+$", r"'\+\$' in it is not read"),
        ("(a)*", r"'\*' in it is not read"),
        ("a{9}", r"'\{9\}' in it is not read"),
        (r"(a)\1", r"in it is not read"),
        (r"(?<!a)b", "in it is not read"),
        ("(?i)a", "in it is not read"),
        ("(?!a)?b", "an optional look at what follows is not read"),
        ("a*+b", "in it is not read"),
        ("[]a]", "in it is not read"),
        ("[^]a]", "not a valid pattern: unterminated"),
    ],
)
def test_what_is_not_read_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        NamePattern.parse(text)
