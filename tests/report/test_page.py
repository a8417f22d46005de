"""The page and its Markdown form: valid, self-contained, the same each time, and unharmed."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import html5lib
import pytest

from lowbit import InputError, UsageError
from lowbit.evaluation.study import Study
from lowbit.report import check_paths, render_html, render_markdown, tables, write
from lowbit.report.tables import groups
from tests.report.studies import HOSTILE, gpt_names, odd_studies, study, with_metric

SMALL = gpt_names(2)[:4]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and tag balance."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.words.append(" ")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    def count(self, tag):
        return sum(found == tag for found, _ in self.elements)


@pytest.fixture(scope="module")
def html():
    return render_html(study(6, SMALL))


@pytest.fixture(scope="module")
def odd_pages():
    return {name: (made, render_html(made)) for name, made in odd_studies().items()}


ODD = tuple(odd_studies())


def check(text):
    """The page is valid, balanced, its ids and references hold, and it asks for nothing."""
    parser = html5lib.HTMLParser(strict=False)
    parser.parse(text)
    assert parser.errors == []
    page = Page(text)
    assert not page.open
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    labels = [name for value in page.attributes("aria-labelledby") for name in value.split()]
    anchors = [h.removeprefix("#") for h in page.attributes("href") if h != "data:,"]
    used = re.findall(
        r"url\(#([^)]*)\)",
        " ".join(filter(None, (v for _, a in page.elements for v in a.values()))),
    )
    assert set(labels + anchors + used + page.attributes("for")) <= set(ids)
    assert all(h.startswith("#") or h == "data:," for h in page.attributes("href"))
    assert not page.attributes("src") and not page.attributes("srcset")
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.count("script") == 1 and page.count("style") == 1 and page.count("h1") == 1
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
    return page


def test_the_page_is_valid_and_asks_for_nothing(html):
    page = check(html)
    assert html.startswith("<!doctype html>")
    assert ("html", {"lang": "en"}) in page.elements
    headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    levels = [int(tag[1]) for tag in headings]
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all("scope" in attrs for tag, attrs in page.elements if tag == "th")
    pictures = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)
    # 4 modules of 5 models, a map for each and the scale, 2 tasks by 2 sizes, 3 shapes
    for kind, count in (("weights", 20), ("error", 6), ("tradeoff", 4), ("speed", 3)):
        titles = [i for i in page.attributes("id") if re.fullmatch(f"{kind}-.*-title", i)]
        assert len(titles) == count, kind


def test_every_number_of_the_study_is_on_the_page(html):
    text = Page(html).text
    for words in ("6.5× smaller", "+1.8 %", "4.15 MiB", "0.78× the speed", "49.55", "144 ms",
                  "−0.013", "context 512", "rule @linear", "avx512_vnni", "seed 20",
                  "lowbit compare gpt2-wikitext2", "match: '@linear'"):  # fmt: skip
        assert words in text, words


def test_the_same_study_gives_the_same_bytes(html):
    assert render_html(study(6, SMALL)) == html
    assert render_html(Study.from_dict(json.loads(json.dumps(study(6, SMALL).to_dict())))) == html


def test_colours_of_the_theme_come_from_the_page(html):
    assert "#0a0b0" not in html and "var(--quantized)" in html
    for name in set(re.findall(r"var\(--([a-z]+)\)", html)):
        assert f"--{name}:" in html


@pytest.mark.parametrize("name", ODD)
def test_an_odd_study_gives_a_valid_page(name, odd_pages):
    check(odd_pages[name][1])
    assert render_markdown(odd_pages[name][0]).startswith("# What quantization did to ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one model", "there is nothing to compare it with"),
        ("no measurements", "its quality was not measured"),
        ("no measurements", "No samples were kept."),
        ("no timings", "Speed was not compared with the reference."),
        ("no modules", "No histograms were taken"),
        ("no modules", "The error of single modules was not measured."),
        ("nothing at all", "– was not measured"),
        ("NaN metric", "is not a number (it was 49.5): the model is broken"),
        ("NaN metric", "∞"),
        ("NaN reference", "goes from not a number to 49.5"),
        ("encoder and decoder", "model.decoder.layers"),
        ("200 modules", "24 of 202 modules are shown"),
        ("200 modules", "The maps have no room for 3 further modules"),
        ("200 experts", "no room for 160 further modules"),
    ],
)
def test_what_is_missing_is_said(name, words, odd_pages):
    assert words in Page(odd_pages[name][1]).text


def test_hostile_text_is_harmless(odd_pages):
    made, html = odd_pages["hostile"]
    page = Page(html)
    assert page.count("img") == 0 and page.count("b") > 0
    assert "<script>alert(1)" in page.text  # shown, as text
    for form in (html, render_markdown(made)):
        form.encode()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", form)
        assert "[U+202E]" in form and "49" not in HOSTILE[4] and "{{ 7" in form
    # In a fence tags are text anyway.
    outside = re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", render_markdown(made))
    assert "&lt;script&gt;alert" in outside and "<script" not in outside and "<img" not in outside


def test_markdown_tables_have_a_cell_for_each_column():
    for made in (study(6, SMALL), *odd_studies().values()):
        rows = [re.sub(r"\\.", "", line) for line in render_markdown(made).splitlines()]
        width = 0
        for line in rows:
            bars = line.count("|") if line.startswith("|") else 0
            assert not (bars and width) or bars == width, line[:200]
            width = bars


def test_markdown_says_what_the_page_says(html):
    text = render_markdown(study(6, SMALL))
    for words in ("6.5× smaller", "+1.8 %, worse", "4.15 MiB", "<ins>thirteenth</ins>", "```yaml",
                  "transformer.h.\\*.attn.c\\_attn", "in parentheses"):  # fmt: skip
        assert words in text, words


def test_what_is_slower_than_float32_is_said_in_both_forms():
    told = study(2)
    sentence = "12 layers are slower than in float32 here; int3-dynamic takes 0.5 times as long."
    slow = replace(told, models=(told.models[0], replace(told.models[1], slow=(sentence,))))
    assert Study.from_dict(slow.to_dict()).models[1].slow == (sentence,)
    for render in (render_html, render_markdown):
        assert render(slow).count("int3-dynamic takes 0.5 times as long") == 1
        assert "int3-dynamic takes" not in render(told)


def test_a_report_is_written_whole_in_the_form_of_its_name(tmp_path):
    made = with_metric(study(2, []), 1, math.nan)
    paths = [tmp_path / name for name in ("r.html", "r.MD", "r.json")]
    paths[0].write_text("old")
    write(made, paths)
    assert paths[0].read_text() == render_html(made)
    assert paths[1].read_text() == render_markdown(made)
    assert Study.load(paths[2]).to_dict() == made.to_dict()
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_hostile_study_is_written_and_read_back(tmp_path):
    made = odd_studies()["hostile"]
    write(made, [tmp_path / f"r{suffix}" for suffix in (".html", ".md", ".json")])
    assert Study.load(tmp_path / "r.json") == made


@pytest.mark.parametrize("name", ["r.pdf", "r", "folder.html", "missing/r.html"])
def test_an_impossible_path_is_refused_before_any_work(name, tmp_path):
    (tmp_path / "folder.html").mkdir()
    for call in (check_paths, lambda paths: write(study(1, []), paths)):
        with pytest.raises(UsageError, match=re.escape(name.split("/")[0])):
            call([tmp_path / "fine.md", tmp_path / name])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(InputError, match="No space left"):
        write(study(1, []), [path])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_every_time_stands_beside_the_reference_of_the_same_rounds():
    made = study(2, SMALL)
    record = made.models[1]
    slower = replace(record.timings[0], seconds=0.411, reference_seconds=0.2178)
    made = replace(made, models=(made.models[0], replace(record, timings=(slower,))))
    for text in (Page(render_html(made)).text, render_markdown(made)):
        assert "0.53× the speed · 218 ms" in text and "beside 588" in text
    contrary = replace(record, timings=(replace(slower, faster_in=slower.rounds // 2),))
    made = replace(made, models=(made.models[0], contrary))
    for text in (Page(render_html(made)).text, render_markdown(made)):
        assert "0.53×, within noise · 218 ms" in text


def test_the_times_of_the_reference_are_those_of_the_rounds_that_give_the_ratios():
    made = study(3, SMALL)
    first, *others = made.models
    others = [
        replace(model, timings=(replace(model.timings[0], reference_seconds=seconds),))
        for model, seconds in zip(others, (0.218, 0.3), strict=True)
    ]
    for count, time, rate in ((1, "218 ms", "587"), (2, "218 ms … 300 ms", "427 … 587")):
        (speed,) = [
            g for g in groups(replace(made, models=(first, *others[:count]))) if g.title == "Speed"
        ]
        assert [row.cells[0].text for row in speed.rows[:2]] == [time, rate]


def test_all_weights_are_drawn_and_so_are_the_modules_of_a_simulated_model():
    made = study(2, SMALL)
    together = made.models[0].modules[0].histogram
    rounded = made.models[1].modules[0].histogram
    modules = [
        replace(m, kernel="", relative_error=None, stored_as="float32")
        for m in made.models[1].modules
    ]
    # The first module was left as it was.
    modules[0] = replace(modules[0], histogram=together)
    simulated = replace(made.models[1], modules=tuple(modules), weights=rounded, recipe=None)
    page = check(render_html(replace(
        made, models=(replace(made.models[0], weights=together), simulated))))  # fmt: skip
    titles = [i for i in page.attributes("id") if i.endswith("-title")]
    assert "all-1-title" in titles
    assert sum(i.startswith("weights-") for i in titles) == len(SMALL) - 1


def test_what_is_alike_has_no_mark():
    made = study(2, SMALL)
    float_model, model = made.models
    alike = replace(
        model,
        **{name: getattr(float_model, name) for name in ("bits_per_weight", "disk_bytes")},
        stored_bytes=round(float_model.stored_bytes / 1.01),
        timings=tuple(replace(t, seconds=t.reference_seconds / 1.015) for t in model.timings),
    )
    groups = tables.groups(replace(made, models=(float_model, alike)))
    marks = {row.label: row.cells[1].effect for group in groups[:2] for row in group.rows}
    assert (
        marks["stored tensors"] == marks["bits per weight"] == marks["forward 1 × 128 tokens"] == ""
    )
