"""JSON and YAML that anybody may have written: one sentence, soon, and in little memory."""

import os
import struct
import time
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lowbit import InputError, Recipe, UsageError
from lowbit.checkpoint.claims import read_header
from lowbit.checkpoint.documents import (
    check_folder,
    check_regular,
    parsed_yaml,
    read_bytes,
    read_json,
    read_yaml,
    reading,
)
from lowbit.checkpoint.load import load_model, load_tokenizer
from tests.folders import save

BOMB = "a0: &a0 [x, x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)
)
YAML = {
    BOMB: "more than 1,000,000 values",
    "&a [*a]": "nested too deeply",
    "[" * 900: "nested too deeply",
    "[" * 100_000: "nested|nesting",
    "{a: " * 2_000 + "1" + "}" * 2_000: "nested too deeply",
    f"a: {'9' * 1_000_000}": "1,000,000 characters",
    f"a: 0x{'f' * 1_000_000}": "characters",
    f"a: {'1:' * 100_000}1": "characters",
    f"a: {'9' * 4_000}": "bits",
    "a: 2001-12-14": "holds a date",
    "a: 9999999-99-99": None,
    "!!binary aGVsbG8=": "holds a bytes",
    "!!set {a, b}": "holds a set",
    "!!python/object/apply:os.system ['touch canary']": "not valid YAML",
    "? {a: b}\n: c": "not valid YAML",
    "a: *nowhere": "not valid YAML",
    "a: 1\nb: {c: 1, d: 2, 'c': 3}": "the key 'c' comes twice",
    "- a: 1\n  a: 1": "the key 'a' comes twice",
    "\n".join(f"{i}: 0" for i in [*range(90_000), 89_999]): "the key '89999' comes twice",
    "---\na: 1\n---\nb: 2": "not valid YAML",
    "# " + "x" * 2_000_000: "at most 1,048,576 are read",
}
JSON = {
    "[" * 100_000 + "]" * 100_000: "nested too deeply",
    "[" * 200 + "]" * 200: "nested too deeply",
    '{"a": 1, "a": 2}': "the key 'a' comes twice",
    f"[{'9' * 5_000}]": "digits",
    f"[{'9' * 300}]": "bits",
    '{"a": NaN}': "NaN is not a number",
    '{"a": ': "line 1, column 7",
    "": "line 1, column 1",
}


WIDE = '{"a": [' + "[]," * (2 << 20) + "[]]}"  # 6 MB, which would take 140 as lists


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_values_are_counted_before_they_take_memory(name, tmp_path):
    folder = save("gpt2", tmp_path / "float")
    (folder / name).write_text(WIDE)
    tracemalloc.start()
    try:
        for read in (load_model, load_tokenizer):
            with pytest.raises(InputError, match=rf"{name} holds more than [14],000,000 values"):
                read(folder)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_a_header_of_many_values_is_refused_before_it_takes_memory(tmp_path):
    text = WIDE.encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(InputError, match="holds more than 2,000,000 values"):
        read_header(tmp_path / "a.safetensors")


def test_what_is_no_regular_file_is_named_as_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match=f"^{tmp_path}/config.json is a pipe; only regular files"):
        check_regular(tmp_path / "config.json")


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_hostile_yaml_is_one_sentence_within_a_second(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    start = time.process_time()
    if YAML[text] is None:
        assert read_yaml(file) == {"a": "9999999-99-99"}
    else:
        with pytest.raises(InputError, match=YAML[text]) as raised:
            read_yaml(file)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    assert time.process_time() - start < 5  # seconds instead of minutes or for ever
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_merge_may_bring_a_key_again_and_types_tell_keys_apart():
    text = 'a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {1: 1, "1": 2}'
    assert parsed_yaml(text, "text") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {1: 1, "1": 2},
    }


@pytest.mark.parametrize("text", JSON, ids=range(len(JSON)))
def test_hostile_json_is_one_sentence(text, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InputError, match=JSON[text]) as raised:
        read_json(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_only_regular_files_are_read(tmp_path):
    for name, make in {
        "pipe": os.mkfifo,
        "zero": lambda place: place.symlink_to("/dev/zero"),
        "loop": lambda place: place.symlink_to(place),
        "folder": os.mkdir,
        "absent": lambda place: None,
    }.items():
        make(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}.* (is a |cannot be read)"):
            read_bytes(tmp_path / name, 100)
    with pytest.raises(InputError, match="not the name"):
        read_bytes(tmp_path / "a\0b", 100)
    with pytest.raises(InputError, match="is a pipe"):
        (tmp_path / "zero").unlink()
        check_folder(tmp_path)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_bytes(tmp_path / "file", 100) == b"x" * 100
    with pytest.raises(InputError, match="has 100 bytes; at most 99"):
        read_bytes(tmp_path / "file", 99)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_what_pyyaml_writes_of_plain_values_comes_back(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "plain.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert read_yaml(file) == value


def test_a_recipe_that_is_no_file_is_wrong_use(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UsageError, match="is a pipe; only regular files"):
        Recipe.from_yaml(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(
    "error", [OSError(2, "No such file"), RecursionError("deep"), KeyError("x")]
)
def test_whatever_a_library_raises_names_the_file(error):
    with pytest.raises(InputError, match="tokenizer.json cannot be loaded: ") as raised:
        with reading("tokenizer.json"):
            raise error
    assert "\n" not in str(raised.value) and raised.value.__cause__ is error
