import datasets
import pytest

from lowbit import InputError
from lowbit.data import text


def test_a_file_is_read_as_it_is(tmp_path):
    file = tmp_path / "novel"
    file.write_bytes("\ufeffEins\r\n\n zwei \x85".encode())
    found = text.read(file)
    assert (found.text, found.source) == ("Eins\r\n\n zwei \x85", str(file))


def test_the_texts_of_a_folder_are_joined_in_the_order_of_their_names(tmp_path):
    for name, content in {"b.txt": "two", "a.txt": "one", "c.md": "other"}.items():
        (tmp_path / name).write_text(content)
    assert text.read(str(tmp_path)).text == "one\ntwo"


def test_a_dataset_of_the_hub_is_joined_by_empty_lines(monkeypatch):
    asked = []

    def load(*names, split):
        asked.append((*names, split))
        return datasets.Dataset.from_dict({"text": ["One.", "", "Two."], "empty": [" ", "", ""]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert text.read("owner/corpus:raw").text == "One.\n\n\n\nTwo."
    assert text.read("corpus", split="train").source == "corpus train"
    assert asked == [("owner/corpus", "raw", "test"), ("corpus", None, "train")]
    with pytest.raises(InputError, match="corpus of the hub has no column 'body'; it has text, em"):
        text.read("corpus", column="body")
    with pytest.raises(InputError, match="column 'empty' of corpus test is empty"):
        text.read("corpus", column="empty")


@pytest.mark.parametrize(
    "name", ["../corpus", "/absent/corpus", "a/b/c", "novel.txt", "a/novel.txt"]
)
def test_what_can_only_be_a_path_never_asks_the_hub(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(InputError, match=f"{name} cannot be read: No such file"):
        text.read(name)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no .txt files"):
        text.read(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xc3(")
    for data in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(InputError, match="a.txt, line 3: byte 0xc3 is not UTF-8"):
            text.read(data)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InputError, match="a.txt is empty"):
        text.read(tmp_path)
    with pytest.raises(InputError, match="there is no file nowhere, and the hub's dataset"):
        text.read("nowhere")
