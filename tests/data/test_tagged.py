"""Files of words and labels, and the first token of each word."""

import pytest

from lowbit import InputError, UsageError
from lowbit.data.tagged import read
from lowbit.data.word_tokens import word_tokens
from tests.folders import byte_tokenizer
from tests.small_tokenizers import Characters, words


def write(folder, text, name="dev.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_first_column_is_the_word_and_the_last_one_its_label(tmp_path):
    columns = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n"
    found = read(write(tmp_path, f"{columns}New York\tB-LOC\r\n.\tO\n"))
    assert found.words == (("EU", "rejects"), ("New York", "."))
    assert found.labels == (("B-ORG", "O"), ("B-LOC", "O"))
    assert found.label_set == ["B-LOC", "B-ORG", "O"]


def test_valid_is_a_name_of_dev_and_train_is_not(tmp_path):
    write(tmp_path, "a O\n", "train.txt")
    assert read(write(tmp_path, "b O\n", "valid.txt")).words == (("b",),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a O\nb\n", "line 2: 'b' is a word without label"),
        ("a\t\n", "line 1"),
        ("\n\n", "no sentences"),
    ],
)
def test_what_is_no_such_file_is_refused_with_its_line(text, told, tmp_path):
    with pytest.raises(InputError, match=told):
        read(write(tmp_path, text))


def test_two_files_of_a_split_are_refused(tmp_path):
    write(tmp_path, "a O\n", "dev.conll")
    with pytest.raises(
        InputError, match=r"2 files dev\* or valid\* \(dev.conll, dev.txt\): leave one"
    ):
        read(write(tmp_path, "a O\n"))


def test_each_word_has_its_first_token_and_none_if_it_is_cut():
    sentences = [["ba", "dodo", "b"], ["x"]]
    found = word_tokens(byte_tokenizer(), sentences, 7)
    for row, sentence in enumerate(sentences):
        tokens = byte_tokenizer().convert_ids_to_tokens(found.inputs["input_ids"][row])
        for place, word in zip(found.first[row], sentence, strict=True):
            # A token may begin with the blank before its word.
            assert place is None or tokens[place].lstrip("Ġ")[:1] in ("", word[0])
    assert found.cut == 1 and found.first[0][2] is None and found.lengths[0] <= 7


def test_special_tokens_are_no_words():
    tokenizer = words("anna", "saw")
    assert word_tokens(tokenizer, [["anna", "saw", "it"]], None).first == [[1, 2, 3]]


def test_a_slow_tokenizer_is_refused():
    slow = Characters("ab", "cd")
    slow.is_fast = False
    with pytest.raises(UsageError, match="fast tokenizer"):
        word_tokens(slow, [["a"]], None)
