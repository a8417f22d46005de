"""`lowbit train` and `lowbit infer`: what they are asked for, and what cannot be."""

import json

import pytest

from tests.models import make
from tests.training.test_squad import VOCABULARY, paragraph, words


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    make("bert").save_pretrained(folder)
    words(*VOCABULARY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--qat-start", "3"], "--qat-start says how integers are trained towards: give a --qat"),
        (["--ranges", "ema", "--bcq", "3"], "--ranges says how integers are trained towards"),
        (["--qat", "int8", "--ema-decay", "0.9"], "--ema-decay is of --ranges ema"),
        (["--project-every", "9"], "--project-every says how binary codes are trained"),
        (["--groups", "group:64", "--qat", "int8"], "--groups says how binary codes are trained"),
        (["--width", "64"], "--width is of a new translator: MODEL has its own"),
        (["--vocabulary", "64"], "--vocabulary is of a new translator: MODEL has its own"),
        (["--batch-size", "0"], "batch_size 0 is less than 1"),
        (["--name", "mrpc"], "--name is of --task glue, not of squad"),
        (["--source-column", "2"], "--source-column is of --task translation, not of squad"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(lowbit, source, tmp_path, more, sentence):
    given = ("train", source, "--task", "squad", "--data", tmp_path, "-o", tmp_path / "out", *more)
    code, out, err = lowbit(*given)
    assert code == 2 and sentence in err and err.count("\n") <= 2, err
    assert not (tmp_path / "out").exists()


def test_a_new_translator_has_no_tokenizer_whose_case_could_be_changed(lowbit, tmp_path):
    given = ("train", "--task", "translation", "--data", tmp_path / "a.tsv", "-o", tmp_path / "out")
    code, _, err = lowbit(*given, "--lower-case")
    assert code == 2 and "--lower-case is of MODEL's tokenizer" in err


def test_squad_trains_with_its_own_length_and_is_inferred_with_the_same(lowbit, source, tmp_path):
    for split in ("train", "dev"):
        stored = {"data": [{"paragraphs": [paragraph(n) for n in range(8)]}]}
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(stored))
    given = ("train", source, "--task", "squad", "--data", tmp_path, "--max-steps", 1, "-q")
    # This model reads fewer tokens than SQuAD's windows usually have.
    code, _, err = lowbit(*given, "-o", tmp_path / "out")
    assert code != 0 and "384" in err
    lengths = ("--max-length", 24, "--stride", 4)
    code, _, err = lowbit(*given, *lengths, "-o", tmp_path / "out")
    assert code == 0, err
    asked = ("infer", tmp_path / "out" / "float", "--task", "squad", "--data", tmp_path)
    asked = (*asked, "--split", "dev", "-o", tmp_path / "answers.json")
    code, _, err = lowbit(*asked)
    assert code != 0 and "384" in err
    code, _, err = lowbit(*asked, *lengths)
    assert code == 0, err
    assert set(json.loads((tmp_path / "answers.json").read_text())) == {str(n) for n in range(8)}
