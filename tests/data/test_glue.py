import datasets
import pytest

from lowbit import InputError, UsageError
from lowbit.data import glue
from lowbit.data.glue_tasks import TASKS
from tests import real
from tests.glue_files import FILES, FOLDERS, ROWS, write


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("glue"))


def replaced(tmp_path, name, content):
    """The task's folder with one file of other content, text or bytes."""
    folder = write(tmp_path)
    content = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(content)
    return folder


def test_the_golden_files_cover_all_nine_tasks():
    assert TASKS.keys() == FOLDERS.keys() == {name for name, _ in ROWS} and len(FOLDERS) == 9
    assert len(FILES) == len(ROWS) == 9 * 3 + 2


@pytest.mark.parametrize(("name", "split"), ROWS)
def test_every_layout_is_read_from_the_root_the_folder_and_the_file(root, name, split):
    expected = ROWS[name, split]
    folder = root / FOLDERS[name]
    for data in (root, folder, str(folder), folder / f"{split}.tsv"):
        (found,) = glue.read(name, split, data)
        assert found.sentences == tuple(texts for texts, _ in expected)
        if split.startswith("test"):
            assert found.labels is None
        else:
            assert found.labels == tuple(label for _, label in expected)
        assert (found.task.name, found.part) == (name, split)
        assert found.source == str(folder / f"{split}.tsv")


def test_classes_are_integers_and_scores_are_floats(root):
    for name in FOLDERS:
        kind = float if name == "stsb" else int
        (found,) = glue.read(name, "train", root)
        assert found.labels and all(type(label) is kind for label in found.labels)
        assert found.task.is_regression == (name == "stsb")


def test_mnli_has_two_dev_and_two_test_sets(root):
    for split in ("dev", "test"):
        matched, mismatched = glue.read("mnli", split, root)
        assert (matched,) == glue.read("mnli", f"{split}_matched", root)
        assert (mismatched,) == glue.read("mnli", f"{split}_mismatched", root)
        assert matched.sentences != mismatched.sentences
    with pytest.raises(UsageError, match="is one file, and GLUE mnli has 2"):
        glue.read("mnli", "dev", root / "MNLI" / "dev_matched.tsv")


def test_rows_that_glue_itself_cut_are_counted_in_qqp_and_refused_elsewhere(root, tmp_path):
    (found,) = glue.read("qqp", "train", root)
    assert found.cut_rows == 1 and len(found.sentences) == 2
    assert glue.read("qqp", "dev", root)[0].cut_rows == 0
    cut = FILES["RTE/dev.tsv"] + "1\tOne.\n"
    with pytest.raises(InputError, match=r"RTE/dev.tsv, line 3: the number of columns is 2, not 4"):
        glue.read("rte", "dev", replaced(tmp_path, "RTE/dev.tsv", cut))


@pytest.mark.parametrize(
    ("name", "file", "content", "sentence"),
    [
        ("rte", "RTE/dev.tsv", "", "RTE/dev.tsv is empty"),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n", "dev.tsv has no rows"),
        (
            "rte",
            "RTE/dev.tsv",
            "index\tsentence1\tlabel\n0\tOne.\tentailment\n",
            "has no column 'sentence2'; line 1 names 3: 'index', 'sentence1', 'label'",
        ),
        (
            "rte",
            "RTE/dev.tsv",
            "index\tsentence1\tsentence2\n0\tOne.\tTwo.\n",
            "has no column 'label'; line 1 names 3",
        ),
        (
            "rte",
            "RTE/dev.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\tOne.\tTwo.\tthree\tentailment\n",
            "line 2: the number of columns is 5, not 4",
        ),
        (
            "rte",
            "RTE/dev.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\tOne.\tTwo.\tperhaps\n",
            "line 2: the label 'perhaps' is not one of the 2 of GLUE rte: entailment, not_ent",
        ),
        ("cola", "CoLA/dev.tsv", "gj04\t2\t\tOne.\n", "line 1: the label '2' is not one of the 2"),
        (
            "cola",
            "CoLA/dev.tsv",
            "a\t1\t\tOne.\nb\t1\t\n",
            "line 2: the number of columns is 3, not 4",
        ),
        (
            "cola",
            "CoLA/dev.tsv",
            b"a\t1\t\tOne.\nb\t1\t\tcaf\xe9\n",
            "line 2: byte 0xe9 is not UTF",
        ),
        ("mrpc", "MRPC/dev.tsv", b"\xef\xbb\xbfQuality\n\n\xff", "line 3: byte 0xff is not UTF-8"),
        ("mrpc", "MRPC/dev.tsv", "Quality\n1".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, name, file, content, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        glue.read(name, "dev", replaced(tmp_path, file, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", ["5.01", "-0.1", "nan", "inf", "", "high"])
def test_scores_outside_their_range_are_refused(tmp_path, score):
    file = FILES["STS-B/dev.tsv"].replace("1.250", score)
    with pytest.raises(InputError, match=f"line 2: the score {score!r} is not within 0 … 5"):
        glue.read("stsb", "dev", replaced(tmp_path, "STS-B/dev.tsv", file))


def test_what_is_not_there_is_one_sentence(root, tmp_path):
    with pytest.raises(UsageError, match="GLUE task 'snli' is unknown; did you mean wnli"):
        glue.read("snli", "dev", root)
    with pytest.raises(UsageError, match="GLUE rte has no split 'valid'; it has train, dev, test"):
        glue.read("rte", "valid", root)
    with pytest.raises(UsageError, match="GLUE rte has no split 'dev_matched'"):
        glue.read("rte", "dev_matched", root)
    with pytest.raises(InputError, match="there is no folder .*absent"):
        glue.read("rte", "dev", tmp_path / "absent")
    with pytest.raises(InputError, match="holds neither RTE/dev.tsv nor dev.tsv$"):
        glue.read("rte", "dev", tmp_path)
    with pytest.raises(InputError, match="nor test.tsv; --split dev reads the dev set$"):
        glue.read("rte", "test", tmp_path)


def test_the_hub_is_asked_only_without_data(root, monkeypatch):
    asked = []

    def load(*names, split):
        asked.append((*names, split))
        return datasets.Dataset.from_dict(
            {"premise": ["A.", "B."], "hypothesis": ["C.", "D."], "label": [2, 0], "idx": [0, 1]}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    glue.read("mnli", "dev", root)
    assert not asked
    found = glue.read("mnli", "dev")
    assert asked == [
        ("nyu-mll/glue", "mnli", "validation_matched"),
        ("nyu-mll/glue", "mnli", "validation_mismatched"),
    ]
    assert found[0].sentences == (("A.", "C."), ("B.", "D.")) and found[0].labels == (2, 0)
    (test,) = glue.read("mnli", "test_matched")
    assert test.labels is None
    with pytest.raises(InputError, match="nyu-mll/glue:rte of the hub has no column 'sentence1'"):
        glue.read("rte", "dev")


def test_a_missing_hub_or_package_is_one_sentence(monkeypatch):
    with pytest.raises(InputError, match="nyu-mll/glue:rte could not be loaded: ") as error:
        glue.read("rte", "dev")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r'package datasets: pip install "\.\[eval\]"'):
        glue.read("rte", "dev")


@pytest.mark.parametrize(
    ("name", "train", "dev", "classes"),
    [
        ("cola", 8551, 1043, 2),
        ("mrpc", 3667, 408, 2),
        ("rte", 2490, 277, 2),
        ("stsb", 5749, 1500, None),
        ("sst2", 67349, 872, 2),
    ],
)
def test_glues_own_files_are_read_whole(name, train, dev, classes):
    folder = real.data("glue")
    for split, rows in (("train", train), ("dev", dev)):
        (found,) = glue.read(name, split, folder)
        assert len(found.sentences) == len(found.labels) == rows and found.cut_rows == 0
        assert all(text.strip() for texts in found.sentences for text in texts)
        if classes:
            assert set(found.labels) == set(range(classes))
        else:
            assert min(found.labels) == 0 and max(found.labels) == 5
