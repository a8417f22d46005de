import pytest

from lowbit import InputError, UsageError
from lowbit.data import parallel
from tests import real


def written(tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_either_column_of_a_tsv_is_the_source(tmp_path):
    file = written(tmp_path, "test.tsv", "uno\tone\tCC\r\n dos \ttwo\tCC\n\tnothing\t\n")
    found = parallel.read(file)
    assert found.sources == ("uno", " dos ", "") and found.targets == ("one", "two", "nothing")
    assert parallel.read(tmp_path) == found
    turned = parallel.read(file, source_column=2)
    assert (turned.sources, turned.targets) == (found.targets, found.sources)
    third = parallel.read(file, source_column=1, target_column=3)
    assert third.sources == found.sources and third.targets == ("CC", "CC", "")


def test_lines_of_two_files_belong_together_empty_ones_too(tmp_path):
    source = written(tmp_path, "test.de", "\ufeffeins\n\nzwei\u2028drei\n\n")
    target = written(tmp_path, "test.en", "one\r\nnothing\r\ntwo\x85three\r\n\r\n")
    found = parallel.read(source, target)
    assert found.sources == ("eins", "", "zwei\u2028drei", "")
    assert found.targets == ("one", "nothing", "two\x85three", "")


def test_files_of_unequal_lengths_are_refused_with_both(tmp_path):
    source = written(tmp_path, "a.de", "eins\nzwei\n")
    target = written(tmp_path, "a.en", "one\ntwo\n\n")
    with pytest.raises(InputError, match=r"a.de has 2 lines and .*a.en has 3"):
        parallel.read(source, target)


@pytest.mark.parametrize(
    ("text", "columns", "sentence"),
    [
        ("uno\tone\ndos\n", {}, "line 2: 1 column, and column 2 is needed"),
        ("uno\tone\n\ndos\ttwo\n", {}, "line 2: 1 column, and column 2 is needed"),
        ("uno\tone\n", {"target_column": 3}, "line 1: 2 columns, and column 3 is needed"),
        ("", {}, "test.tsv is empty"),
        (b"uno\tone\na\xf1o\tyear\n", {}, "line 2: byte 0xf1 is not UTF-8"),
    ],
)
def test_what_is_no_tsv_of_pairs_is_one_sentence(tmp_path, text, columns, sentence):
    with pytest.raises(InputError, match=sentence):
        parallel.read(written(tmp_path, "test.tsv", text), **columns)


def test_what_is_not_there_is_one_sentence(tmp_path):
    file = written(tmp_path, "a.de", "eins\n")
    with pytest.raises(InputError, match="a.en cannot be read: No such file"):
        parallel.read(file, tmp_path / "a.en")
    with pytest.raises(InputError, match="holds no valid.tsv"):
        parallel.read(tmp_path, split="valid")


@pytest.mark.parametrize("columns", [(0, 1), (1, 1), (2, 2), (1, -1)])
def test_columns_are_two_and_counted_from_one(tmp_path, columns):
    file = written(tmp_path, "test.tsv", "uno\tone\n")
    with pytest.raises(
        UsageError, match=f"columns {columns[0]} and {columns[1]} must be two different"
    ):
        parallel.read(file, None, *columns)


def test_real_pairs_are_read_whole():
    tatoeba = parallel.read(real.data("translation", "spa-eng"))
    assert len(tatoeba.sources) == len(tatoeba.targets) == 2000
    folder = real.data("translation", "multi30k")
    flickr = parallel.read(folder / "test_2016_flickr.de", folder / "test_2016_flickr.en")
    assert len(flickr.sources) == len(flickr.targets) == 1000


@pytest.mark.parametrize("nested", [False, True])
def test_a_dataset_of_the_hub_has_columns_in_their_order(monkeypatch, nested):
    asked = []

    def load(name, configuration, split):
        asked.append((name, configuration, split))
        row = {"de": "ein Hund", "en": "a dog", "fr": "un chien"}
        return [{"id": 7, "translation": row} if nested else {"id": 7, **row}]

    monkeypatch.setattr("lowbit.data.hf_datasets.load", load)
    found = parallel.read("owner/pairs:small", split="valid")
    assert (found.sources, found.targets) == (("ein Hund",), ("a dog",))
    assert asked == [("owner/pairs", "small", "validation")]
    assert parallel.read("owner/pairs", source_column=3, split="train").sources == ("un chien",)
    with pytest.raises(InputError, match="owner/pairs has 3 columns of text, and column 4 is need"):
        parallel.read("owner/pairs", target_column=4)


def test_an_empty_cell_of_the_hub_shifts_no_column(monkeypatch):
    rows = [{"id": 1, "de": "eins", "note": None, "en": "one"},
            {"id": 2, "de": "zwei", "note": "x", "en": "two"}]  # fmt: skip
    monkeypatch.setattr("lowbit.data.hf_datasets.load", lambda *_: rows)
    assert parallel.read("owner/pairs", target_column=3).targets == ("one", "two")
    with pytest.raises(InputError, match="owner/pairs, row 1: note is None and no text"):
        parallel.read("owner/pairs")
