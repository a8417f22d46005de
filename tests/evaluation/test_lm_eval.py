"""lm-evaluation-harness measures quantized models, with and without an adapter, unchanged."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import lowbit
from lowbit.cli.run import environment
from tests.models import make

pytestmark = pytest.mark.nightly

TASK = """
task: continuation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{before}}}}"
doc_to_target: " {{{{after}}}}"
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}]
"""
ROWS = [{"before": f"w{n + 1} w{n * 7 + 1}", "after": f"w{n * 3 + 1} w{n + 2}"} for n in range(6)]


def own_perplexity(model, tokenizer):
    """exp of minus the mean of a row's log-likelihood, without the harness."""
    found = []
    for row in ROWS:
        ids = tokenizer(f"{row['before']} {row['after']}", return_tensors="pt").input_ids
        start = len(tokenizer(row["before"]).input_ids)
        with torch.no_grad():
            logits = model(ids).logits[0].double()
        says = logits - logits.logsumexp(-1, keepdim=True)
        found.append(sum(says[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    return math.exp(-sum(found) / len(found))


def harness(folder, arguments):
    """The perplexity that lm_eval tells, in a process of its own under `lowbit run`."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", arguments, "--tasks", "continuation", "--include_path", str(folder)]
    ended = subprocess.run(
        [*command, "--output_path", str(folder / "told.json")],
        env=environment({**os.environ, "HF_HOME": str(folder / "cache")}),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (told,) = folder.glob("told*.json")
    return json.loads(told.read_text())["results"]["continuation"]["perplexity,none"]


def write_task(place, folder, recipe, adapter=None):
    """The task in `place`; a quantized model with its tokenizer in `folder`, and an adapter."""
    model = make("gpt2")
    lowbit.quantize(model, recipe, progress=False)
    model.save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({"<end>": 0} | {f"w{i}": i for i in range(1, 200)}, unk_token="<end>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    rows = place / "rows.json"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    (place / "continuation.yaml").write_text(TASK.format(file=rows))
    if adapter is not None:
        adapted(AutoModelForCausalLM.from_pretrained(folder), adapter)


def test_the_harness_measures_what_the_quantized_model_says(tmp_path):
    pytest.importorskip("lm_eval", reason="the package lm-eval is absent")
    folder = tmp_path / "model"
    write_task(tmp_path, folder, "int2")
    arguments = f"pretrained={folder}"
    model = AutoModelForCausalLM.from_pretrained(folder)
    if find_spec("peft"):
        model = adapted(model, tmp_path / "adapter")
        arguments += f",peft={tmp_path / 'adapter'}"
    wanted = own_perplexity(model.eval(), AutoTokenizer.from_pretrained(folder))
    assert abs(harness(tmp_path, arguments) / wanted - 1) <= 1e-4


def adapted(model, folder):
    from peft import LoraConfig, get_peft_model

    import lowbit.peft  # noqa: F401
    from tests.peft.adapted import randomized

    model = randomized(get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"])))
    model.save_pretrained(folder)
    return model
