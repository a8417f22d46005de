"""The pure parts of the report: frontier, places, labels, differing words, visible text."""

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.report import wording
from lowbit.report.differ import differences
from lowbit.report.frontier import frontier
from lowbit.report.markdown import escape, fenced
from lowbit.report.pictures.labels import RADIUS, Box, place_labels
from lowbit.report.pictures.tradeoff import off_scale
from lowbit.report.places import Place, arrange, evenly, place
from lowbit.visible import shortened, visible
from tests.report.studies import SEQ2SEQ, gpt_names

coordinate = st.integers(0, 6).map(float) | st.just(math.nan)


@given(st.lists(st.tuples(coordinate, coordinate), max_size=12))
def test_the_frontier_is_what_no_other_point_beats(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    known = {i for i, p in enumerate(points) if not any(map(math.isnan, p))}
    best = {i for i in known if not any(beats(points[j], points[i]) for j in known)}
    found = frontier([p[0] for p in points], [p[1] for p in points])
    assert set(found) == best and len(found) == len(best)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


words = st.lists(st.sampled_from(["a", "b", "the", "don't", "漢字", ",", "\n", "ß"]), max_size=30)
text = st.builds(" ".join, words) | st.text(max_size=60)


@given(text, text)
def test_segments_join_to_the_texts_they_were_made_of(first, second):
    segments = differences(first, second)

    def joined(*kinds):
        return "".join(s.space + s.text for s in segments if s.kind in kinds)

    assert joined("same", "new") == second
    assert "".join(joined("same", "gone").split()) == "".join(first.split())


@given(text)
def test_equal_texts_have_no_difference(one):
    assert all(s.kind == "same" for s in differences(one, one))
    assert all(s.kind == "same" for s in differences(one, "  " + one + "\n"))


def test_the_changed_word_is_the_one_marked():
    found = differences("the early twelfth century", "the late twelfth  century")
    assert [(s.kind, s.text) for s in found] == [
        ("same", "the"),
        ("gone", "early"),
        ("new", "late"),
        ("same", "twelfth  century"),
    ]
    assert [s.text for s in differences("私は本を", "私は水を") if s.kind == "new"] == ["水"]


@pytest.mark.timeout(20)
def test_a_long_text_is_compared_in_time():
    one = "the same word again " * 600
    assert differences(one, one.replace("word", "term", 1))
    assert differences("x" * 10_000, "y" * 10_000)[-1].text == "y" * 10_000


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("transformer.h.11.attn.c_attn", Place("transformer.h", 11, "attn.c_attn")),
        ("encoder.block.3.layer.0.wo", Place("encoder.block", 3, "layer.0.wo")),
        ("lm_head", Place("", None, "lm_head")),
        ("0.weight", Place("", 0, "weight")),
        ("classifier.2", Place("classifier", 2, "")),
        ("h.007.x", Place("", None, "h.007.x")),
        ("h.²", Place("", None, "h.²")),
        ("h." + "9" * 5000, Place("", None, "h." + "9" * 5000)),
        ("", Place("", None, "")),
    ],
)
def test_the_first_integer_of_a_name_is_its_layer(name, at):
    assert place(name) == at


def test_encoder_and_decoder_stay_apart():
    stacks, alone = arrange([*SEQ2SEQ, "shared"])
    assert [s.name for s in stacks] == ["model.encoder.layers", "model.decoder.layers"]
    assert [s.layers for s in stacks] == [(0, 1, 2), (0, 1, 2)]
    assert stacks[1].names["fc1"][2] == "model.decoder.layers.2.fc1"
    assert alone == ["shared"]


def test_every_module_has_one_place():
    names = gpt_names(12)
    stacks, alone = arrange(names + names[:3])
    placed = [n for s in stacks for row in s.names.values() for n in row.values()]
    assert sorted(placed + alone) == sorted(names)


@given(st.integers(1, 200), st.integers(2, 30))
def test_an_even_choice_is_ordered_without_repeats_and_holds_both_ends(count, at_most):
    items = list(range(count))
    chosen = evenly(items, at_most)
    assert len(chosen) == min(count, at_most) == len(set(chosen))
    assert chosen == sorted(chosen) and {0, count - 1} <= set(chosen)


spot = st.tuples(st.floats(20, 280), st.floats(20, 180))


@given(st.lists(spot, min_size=1, max_size=12), st.integers(10, 120))
def test_labels_touch_no_label_no_point_and_no_edge(points, width):
    area, line = Box(0, 0, 300, 200), Box(0, 99, 300, 101)
    placed = place_labels(points, [(float(width), 12.0)] * len(points), area, [line])

    def apart(a, b):
        return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]

    boxes = [(b.left, b.top, b.right, b.bottom) for b in placed if b is not None]
    assert boxes, "the first label always finds room"
    dots = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    for i, box in enumerate(boxes):
        assert 0 <= box[0] and box[2] <= 300 and 0 <= box[1] and box[3] <= 200
        assert all(apart(box, other) for other in [*boxes[:i], *dots, (0, 99, 300, 101)])


def test_only_a_broken_model_is_off_the_scale():
    assert off_scale([49.0, 50.0, 57.0, 812.0], "lower") == [False, False, False, True]
    assert off_scale([49.0, 812.0], "lower") == [False, False]
    assert off_scale([0.6, 0.61, 0.62, 0.01], "higher") == [False] * 4


@given(st.text())
def test_visible_text_hides_nothing(anything):
    shown = visible(anything)
    shown.encode()
    assert visible(shown) == shown
    for character in shown:
        assert character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cs"}
        assert unicodedata.bidirectional(character) not in {
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        }  # fmt: skip


def test_what_is_hidden_is_spelled_out():
    assert visible("a\x00b\u202ec\ud800\r\n") == "a[U+0000]b[U+202E]c[U+D800]\n"
    assert visible("naïve עברית 漢字\ttab") == "naïve עברית 漢字\ttab"


@given(st.text(), st.integers(4, 40))
def test_a_shortened_text_is_one_line_and_short(anything, length):
    line = shortened(anything, length)
    assert len(line) <= length and "\n" not in line


def test_the_middle_of_a_long_name_is_left_out():
    assert shortened("transformer.h.0.attn", 12) == "tran….0.attn"


@given(st.text())
def test_a_fence_holds_its_text(anything):
    block = fenced(anything).splitlines()
    fence = block[0]
    assert set(fence) == {"`"} and block[-1] == fence
    assert not any(line.strip().startswith(fence) for line in block[1:-1])


def test_markdown_stays_text():
    assert escape("a|b *c* <script> [x](y) `z` # & ~~d~~\n- e") == (
        r"a\|b \*c\* &lt;script&gt; \[x\](y) \`z\` \# &amp; \~\~d\~\~ - e"
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (wording.number(49.5), "49.5"),
        (wording.number(1234567.0), "1,234,567"),
        (wording.number(-0.25), "−0.25"),
        (wording.number(0.000001234), "1.234e−06"),
        (wording.number(100.0, 3), "100"),
        (wording.number(0.0), "0"),
        (wording.size(None), "–"),
        (wording.size(1023), "1,023 bytes"),
        (wording.size(3 << 20), "3.00 MiB"),
        (wording.size(5 << 30), "5.00 GiB"),
        (wording.duration(0.0386), "38.6 ms"),
        (wording.duration(2.5e-5), "25 µs"),
        (wording.times(math.inf), "∞"),
        (wording.percent(0.00001), "less than 0.01 %"),
        (wording.plural(1, "module"), "1 module"),
    ],
)
def test_numbers_read_as_people_write_them(made, said):
    assert made == said


@given(st.floats(1e-12, 1e3))
def test_decibels_are_ten_times_the_logarithm(error):
    assert abs(wording.decibels(error) - 10 * np.log10(1 / error)) <= 1e-9
    assert wording.decibels(0.0) == math.inf and wording.decibels(None) is None
    assert math.isnan(wording.decibels(math.nan)) and math.isnan(wording.decibels(-1.0))
