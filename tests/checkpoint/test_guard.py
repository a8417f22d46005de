"""A program that does not import lowbit fails to load what lowbit wrote, and is told why."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import lowbit
from lowbit.checkpoint.guard import ADVICE
from lowbit.inspect.checkpoint import inspect_checkpoint
from tests.combinations import some
from tests.folders import save
from tests.models import make, output

# Folder -> the classes that it is opened as.
OPENED = {
    "bert": ("BertModel", "BertForSequenceClassification"),
    "bert-mlm": ("BertForMaskedLM", "BertModel", "BertForTokenClassification"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Model", "AutoModelForCausalLM"),
    "llama-untied": ("LlamaForCausalLM", "LlamaForSequenceClassification", "AutoModel"),
    "t5": ("T5ForConditionalGeneration", "T5EncoderModel", "AutoModelForSeq2SeqLM"),
    "bart": ("BartForConditionalGeneration", "BartModel", "BartForCausalLM"),
}
PROGRAM = """
    import json, sys
    import transformers
    outcomes = {}
    for folder, names in json.loads(sys.argv[1]).items():
        for name in names:
            try:
                getattr(transformers, name).from_pretrained(folder)
            except Exception as error:
                outcomes[f"{folder}:{name}"] = f"{type(error).__name__}: {error}"
            else:
                outcomes[f"{folder}:{name}"] = "loaded"
    try:
        transformers.pipeline("text-generation", sys.argv[2])
    except Exception as error:
        outcomes["pipeline"] = str(error)
    try:
        from sentence_transformers import SentenceTransformer
        SentenceTransformer(sys.argv[3], device="cpu")
    except Exception as error:
        outcomes["sentence-transformers"] = str(error)
    assert "lowbit" not in sys.modules
    print(json.dumps(outcomes))
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_every_opening_without_lowbit_raises_and_the_report_names_what_to_do(tmp_path):
    folders = {}
    for number, (name, classes) in enumerate(OPENED.items()):
        model = make(name)
        lowbit.quantize(model, ("int8", "int4-all")[number % 2])
        model.save_pretrained(tmp_path / name, max_shard_size="60KB")
        folders[str(tmp_path / name)] = classes
    save("gpt2", tmp_path / "float")
    streamed = tmp_path / "streamed"
    lowbit.quantize_checkpoint(tmp_path / "float", "int8", streamed, max_shard_bytes=60_000)
    assert len(list(streamed.glob("*.safetensors"))) > 1
    folders[str(streamed)] = OPENED["gpt2"]
    arguments = [json.dumps(folders), str(streamed), str(tmp_path / "bert")]
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        # The tests' own setting hides the report.
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "warning"},
    )
    assert ended.returncode != 0 and ADVICE in ended.stderr
    outcomes = json.loads(ended.stdout.splitlines()[-1])
    assert len(outcomes) == 2 + sum(map(len, folders.values()))
    quiet = {what: text for what, text in outcomes.items() if "ignore_mismatched_sizes" not in text}
    assert not quiet


@pytest.mark.parametrize(("name", "recipe"), some(OPENED, ["int8", "int4-all"]))
def test_lowbit_itself_does_not_see_the_guards(name, recipe, tmp_path):
    model = make(name)
    lowbit.quantize(model, recipe)
    model.save_pretrained(tmp_path / "once")
    stored = load_file(tmp_path / "once" / "model.safetensors")
    empty = {key for key, tensor in stored.items() if not tensor.numel()}
    assert ADVICE in empty and len(empty) > 1
    loaded, info = type(model).from_pretrained(tmp_path / "once", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(output(loaded), output(model))
    assert lowbit.footprint(loaded).parameters == lowbit.footprint(model).parameters
    loaded.save_pretrained(tmp_path / "twice")
    again = load_file(tmp_path / "twice" / "model.safetensors")
    assert again.keys() == stored.keys()
    base, info = AutoModel.from_pretrained(tmp_path / "twice", output_loading_info=True)
    assert not empty & info["unexpected_keys"]


@pytest.mark.parametrize("name", OPENED)
def test_streaming_writes_the_same_guards(name, tmp_path):
    save(name, tmp_path / "float")
    lowbit.quantize_checkpoint(tmp_path / "float", "int8-all", tmp_path / "streamed")
    model = make(name)
    lowbit.quantize(model, "int8-all")
    model.save_pretrained(tmp_path / "saved")
    streamed, saved = (load_file(tmp_path / f / "model.safetensors") for f in ("streamed", "saved"))
    assert streamed.keys() == saved.keys()


def test_a_folder_that_was_written_before_loads_and_inspect_says_what_it_lacks(tmp_path):
    model = make("bert")
    lowbit.quantize(model, "int8")
    model.save_pretrained(tmp_path)
    assert inspect_checkpoint(tmp_path).guarded
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if tensor.numel()}
    save_file(kept, file, metadata={"format": "pt"})
    assert torch.equal(output(AutoModel.from_pretrained(tmp_path)), output(model))
    assert not inspect_checkpoint(tmp_path).guarded
