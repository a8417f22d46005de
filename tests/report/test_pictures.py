"""What the pictures show, read back from the SVG."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lowbit.evaluation.study import Histogram, ModuleRecord, Timing
from lowbit.report.pictures.axis import Scale
from lowbit.report.pictures.heatmap import ACROSS, heatmap, left_out, legend, scale
from lowbit.report.pictures.histograms import drawable, histogram
from lowbit.report.pictures.sheet import WIDTH
from lowbit.report.pictures.speed import bars, comparable
from lowbit.report.pictures.tradeoff import Point, tradeoff
from tests.report.studies import SEQ2SEQ


def texts(svg):
    """(words, x, y) of every text."""
    found = []
    for element in ElementTree.fromstring(svg).iter("text"):
        found.append((element.text, float(element.get("x")), float(element.get("y"))))
    return found


def words(svg):
    return [word for word, _, _ in texts(svg)]


def module(name, error, kernel="k"):
    return ModuleRecord(name, "affine", 10, 10, kernel, "", error)


def decibel(value):
    return 10 ** (-value / 10)


def test_each_cell_stands_in_the_row_of_its_kind_and_the_column_of_its_layer():
    # 10·layer + 1 dB for q and + 2 for k: the number in a cell says where it belongs
    kinds = {1: "q", 2: "k"}
    modules = [
        module(f"enc.{layer}.{kind}", decibel(10 * layer + digit))
        for layer in (5, 3, 4)
        for digit, kind in kinds.items()
    ]
    at = {word: (x, y) for word, x, y in texts(heatmap("m", "model", modules, (0.0, 60.0)))}
    for layer in (3, 4, 5):
        for digit, kind in kinds.items():
            x, y = at[str(10 * layer + digit)]
            assert abs(x - at[str(layer)][0]) <= 1 and abs(y - at[kind][1]) <= 3
    assert at["3"][0] < at["4"][0] < at["5"][0] and at["q"][1] < at["k"][1]


def test_kept_unknown_exact_and_missing_cells_differ():
    modules = [
        module("h.0.a", None, kernel=""),
        module("h.1.a", None),
        module("h.2.a", 0.0),
        module("h.3.a", decibel(7)),
        module("h.4.b", math.nan),
    ]
    svg = heatmap("m", "model", modules, (0.0, 10.0))
    found = words(svg)
    assert found.count("?") == 2 and found.count("∞") == 1 and found.count("7") == 1
    assert svg.count("<pattern") == 1  # the hatch of the one kept in float
    # five modules of ten possible cells are drawn, the others left empty
    assert len(_boxes(svg)) == 5
    assert "1 modules are kept in float" in svg


def _boxes(svg):
    """(x, y, width, height) of each box, but for the one of the hatch."""
    drawn = ElementTree.fromstring(svg).find("g").iter("rect")
    return [tuple(float(box.get(key)) for key in ("x", "y", "width", "height")) for box in drawn]


def test_stacks_have_blocks_of_their_own_and_the_rest_is_outside():
    modules = [module(name, 0.01) for name in [*SEQ2SEQ, "shared", "lm_head"]]
    found = words(heatmap("m", "model", modules, (0.0, 30.0)))
    for once in ("model.encoder.layers", "model.decoder.layers", "shared", "outside the layers"):
        assert found.count(once) == 1
    assert found.count("fc1") == 2 and found.count("20") == len(modules)


def test_many_layers_go_in_rows_of_twelve():
    modules = [module(f"h.{i}.{kind}", 0.1) for i in range(30) for kind in "ab"]
    found = texts(heatmap("m", "model", modules, (0.0, 30.0)))
    assert [word for word, _, _ in found].count("a") == math.ceil(30 / ACROSS)
    assert all(0 <= x <= WIDTH for _, x, _ in found)
    assert left_out(modules) == 0


def test_what_a_map_has_no_room_for_is_counted():
    modules = [module(f"h.0.expert{i}", 0.1) for i in range(100)]
    modules += [module(f"extra{i}", 0.1) for i in range(50)]
    svg = heatmap("m", "model", modules, (0.0, 30.0))
    assert words(svg).count("10") + left_out(modules) == 150 and left_out(modules) == 70


def test_all_maps_share_a_scale_of_what_is_known():
    assert scale([[module("a", decibel(12))], [module("a", decibel(38))]]) == (10.0, 40.0)
    assert scale([[module("a", decibel(-3))]]) == (-20.0, 0.0)
    assert scale([[module("a", None)], []]) is None
    assert scale([[module("a", math.nan)]]) is None
    assert scale([[module("a", 0.0)]]) == (0.0, 20.0)
    assert {"10", "40 dB"} <= set(words(legend("s", (10.0, 40.0))))


def test_a_histogram_that_holds_nothing_is_not_drawn():
    assert not drawable(None)
    assert not drawable(Histogram(0.0, (1, 2), 0))
    assert not drawable(Histogram(math.nan, (1, 2), 0))
    assert not drawable(Histogram(1.0, (), 3))
    assert not drawable(Histogram(1.0, (0, 0), 3))
    assert drawable(Histogram(1.0, (0, 1), 0))


def test_the_histogram_says_what_is_cut_off():
    old, new = Histogram(1.0, (1, 2, 1), 2), Histogram(1.0, (0, 40, 0), 3)
    found = words(histogram("h", "m", "int2", old, new))
    assert "int2" in found and "beyond ±1: 2 float, 3 quantized" in found
    # 40 of 43 in one bin against 2 of 6
    assert f"tallest bin: {40 / 43 / (2 / 6):.1f}× float’s" in found
    assert not any("tallest" in word for word in words(histogram("h", "m", "x", old, old)))


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_better_is_up_and_smaller_is_left(better):
    values = (1.0, 2.0, 3.0) if better == "lower" else (3.0, 2.0, 1.0)
    points = [Point(n, s, v, n == "best") for n, s, v in zip(
        ("best", "middle", "worst"), (32.0, 8.0, 2.0), values, strict=True)]  # fmt: skip
    svg = tradeoff("t", "metric", better, "bits per weight", points)
    spots = sorted(_markers(svg))
    assert len(spots) == 3
    # The larger is the better here, and y counts down the page.
    ys = [y for _, y in spots]
    assert ys == sorted(ys, reverse=True)
    assert {"best", "middle", "worst"} <= set(words(svg))
    assert "On the frontier: worst, middle, best." in svg


def _markers(svg):
    """(x, y) of each point."""
    marks = [p for p in ElementTree.fromstring(svg).iter("path") if p.get("class") == "point"]
    return [tuple(map(float, re.findall(r"-?[\d.]+", p.get("transform")))) for p in marks]


def test_a_model_off_the_scale_is_shown_with_its_value():
    points = [Point(f"m{i}", 2.0**i, v, False) for i, v in enumerate((812.0, 57.0, 51.0, 50.0))]
    svg = tradeoff("t", "perplexity", "lower", "MiB", points)
    assert "m0: 812" in words(svg) and len(_markers(svg)) == 4


def test_identical_points_are_drawn():
    points = [Point("a", 4.0, 1.0, True), Point("b", 4.0, 1.0, False)]
    assert {"a", "b"} <= set(words(tradeoff("t", "m", "higher", "MiB", points)))
    zeros = [replace(point, size=0.0, value=0.0) for point in points]
    assert {"a", "b"} <= set(words(tradeoff("t", "m", "lower", "MiB", zeros)))


def test_bars_are_as_long_as_the_speedup():
    timing = Timing(1, 128, 0, 5, 2, 0.5, 0.05, 1.0)
    rows = [("twice", timing), ("half", replace(timing, seconds=2.0, spread=math.nan))]
    svg = bars("s", "forward", rows)
    wide = [width for _, _, width, _ in _boxes(svg)]
    assert len(wide) == 2 and abs(wide[0] / wide[1] - 4) <= 0.01
    assert "2.0× · 500 ms" in words(svg) and "0.50× · 2 s · slower" in words(svg)


@pytest.mark.parametrize(
    ("seconds", "reference"), [(1.0, None), (0.0, 1.0), (math.nan, 1.0), (1.0, math.inf)]
)
def test_a_speedup_that_is_no_number_is_not_drawn(seconds, reference):
    assert not comparable(Timing(1, 1, 0, 1, 1, seconds, 0.0, reference))
    assert not comparable(None) and comparable(Timing(1, 1, 0, 1, 1, 1.0, 0.0, 1.0))


def test_ticks_are_round_numbers_inside_the_scale():
    assert Scale(-0.4, 0.4, 0, 100).ticks() == pytest.approx([-0.4, -0.2, 0, 0.2, 0.4])
    assert Scale(411.3, 437.2, 0, 100).ticks() == [415, 420, 425, 430, 435]
    assert Scale(2.4, 37, 0, 100, doublings=True).ticks() == [4, 8, 16, 32]
    for low, high in ((0, 1e-9), (-3, 1e6), (0.31, 0.32)):
        ticks = Scale(low, high, 0, 1).ticks()
        assert 2 <= len(ticks) <= 7 and low <= min(ticks) and max(ticks) <= high


def test_half_the_size_is_the_same_distance_everywhere():
    at = Scale(1, 16, 10, 90, doublings=True)
    assert [at(v) for v in (1, 2, 4, 8, 16)] == [10, 30, 50, 70, 90]


def test_the_heights_of_a_histogram_are_on_its_axis():
    # a third of the weights in each of three bins
    flat = Histogram(1.0, (2, 2, 2), 0)
    svg = histogram("h", "m", "x", flat, flat)
    ticks = {w: y for w, _, y in texts(svg) if w.endswith("%")}
    per_percent = (ticks["0 %"] - ticks["20 %"]) / 20
    outline = ElementTree.fromstring(svg).find("g").findall("path")[0].get("d")
    heights = {float(y) for y in re.findall(r"V(-?[\d.]+)", outline)}
    assert max(heights) - min(heights) == pytest.approx(per_percent * 100 / 3, rel=0.01)
    assert {"float", "quantized", "value of a weight", "−1", "1"} <= set(words(svg))


def test_a_long_whisker_leaves_room_for_its_words():
    timing = Timing(1, 128, 0, 5, 2, 0.5, 0.9, 1.0)
    svg = bars("s", "forward", [("noisy", timing)])
    at = {word: x for word, x, _ in texts(svg)}
    assert at["2.0× · 500 ms"] < WIDTH - 100
