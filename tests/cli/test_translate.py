"""`lowbit translate` and `lowbit sensitivity` as their user sees them."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from lowbit.decoding.translator import Translator
from lowbit.training.translation import teach
from tests.training import reversing

LONG = " ".join(["ba"] * 40)
SENTENCES = "ba bo da\n\nla na ka lo\r\n" + LONG + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return reversing.write(tmp_path_factory.mktemp("data"), train=20, valid=12)


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A model that has learned nothing, but says it well enough to be compared."""
    lesson = teach(reversing.material(data))
    folder = tmp_path_factory.mktemp("models") / "float"
    lesson.model.save_pretrained(folder)
    lesson.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def given(monkeypatch):
    def give(stored, talks=False):
        stream = SimpleNamespace(buffer=io.BytesIO(stored), isatty=lambda: talks)
        monkeypatch.setattr(sys, "stdin", stream)

    return give


def test_a_line_in_is_a_line_out_and_what_is_too_long_is_said(lowbit, source, given):
    given(SENTENCES.encode())
    code, out, err = lowbit("translate", source, "--max-new-tokens", 5, "--batch-size", 2)
    lines = out.split("\n")
    assert code == 0 and len(lines) == 5 and lines[1] == "" and lines[4] == ""
    assert "line 4: 41 tokens, of which the model reads the first 16" in err
    assert "Token indices sequence length" not in err
    given(SENTENCES.encode())
    assert lowbit("translate", source, "--max-new-tokens", 5, "--quiet")[1] == out
    given(SENTENCES.encode(), talks=True)
    code, again, err = lowbit("translate", source, "--max-new-tokens", 5)
    assert again == out and err.count("> ") == 5


def test_json_has_the_source_beside_the_output(lowbit, source, given):
    from lowbit.checkpoint.load import load_model, load_tokenizer

    given(SENTENCES.encode())
    code, out, _ = lowbit("translate", source, "--beams", 3, "--max-new-tokens", 5, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    sources = [line["source"] for line in told]
    assert sources == ["ba bo da", "", "la na ka lo", LONG]
    translator = Translator(load_model(source), load_tokenizer(source), 3, 5)
    assert tuple(line["output"] for line in told) == translator(sources).outputs
    # What a model's own configuration asks of `generate` besides changes nothing.
    translator.model.generation_config.num_return_sequences = 3
    translator.model.generation_config.return_dict_in_generate = True
    assert tuple(line["output"] for line in told) == translator(sources).outputs


def test_bytes_that_are_no_text_are_told_by_line(lowbit, source, given):
    given(b"ba\n" * 3 + b"\xfe\n")
    code, out, err = lowbit("translate", source, "--max-new-tokens", 2)
    assert code == 1 and "standard input, line 4: byte 0xfe is not UTF-8" in err
    given(b"")
    assert lowbit("translate", source) == (0, "", "")


def test_planes_are_for_nested_codes(lowbit, source, given, tmp_path):
    given(b"ba bo\n")
    code, _, err = lowbit("translate", source, "--planes", 2)
    assert code == 2 and "has no binary codes" in err


def test_sensitivity_prints_each_kind_by_bits(lowbit, source, data):
    arguments = ("sensitivity", source, "--data", data, "--bits", "1,4", "--items", 8)
    code, out, _ = lowbit(*arguments, "--json")
    told = json.loads(out)
    kinds = {price["kind"]: price for price in told["prices"]}
    assert code == 0 and list(kinds) == [
        "model.shared",
        "model.encoder.layers.*.self_attn",
        "model.encoder.layers.*.fc",
        "model.decoder.layers.*.self_attn",
        "model.decoder.layers.*.encoder_attn",
        "model.decoder.layers.*.fc",
    ]
    assert kinds["model.encoder.layers.*.self_attn"]["modules"] == 4
    for price in kinds.values():
        far, near = (abs(price["losses"][bits] - told["loss"]) for bits in "14")
        assert near > 0 and far > 0
    code, out, _ = lowbit(*arguments)
    assert code == 0 and "model.decoder.layers.*.encoder_attn" in out
    code, _, err = lowbit("sensitivity", source, "--data", data, "--bits", "one")
    assert code == 2 and "bits 'one' must be numbers" in err
