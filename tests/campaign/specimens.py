"""Undamaged files of every kind that lowbit reads, in a folder each, and what reads them."""

import contextlib
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import lowbit
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.cli import main
from lowbit.evaluation.evaluate import EvaluationPlan, evaluate
from lowbit.evaluation.study import Study
from lowbit.report.page import render_html, render_markdown
from lowbit.solvers.resume import Journal, Solved
from tests.campaign import documents, gguf_files, tensors
from tests.folders import byte_tokenizer, save
from tests.interop import foreign
from tests.models import VOCABULARY, make, output
from tests.small_tokenizers import words

TEXT = "A scale is shared by a group of weights.\n" * 12
RUN = {"recipe": "int4", "data": "none"}
# What a verb found: numbers and texts that are equal for equal inputs.
Answer = list[Tensor | str]


class CommandError(Exception):
    """A command that ended with a code, and what it printed."""

    def __init__(self, code: int, printed: str) -> None:
        super().__init__(code, printed)
        self.code, self.printed = code, printed


def command(*arguments: object) -> str:
    """The command line, in this process: what it printed. Raises CommandError."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["lowbit", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if code:
        raise CommandError(code, out.getvalue() + err.getvalue())
    return out.getvalue() + err.getvalue()


@dataclass(frozen=True)
class Verb:
    """Reads a folder; `scratch` is an empty one that it may write to. heavy: it takes seconds;
    slow: tens of milliseconds."""

    name: str
    run: Callable[[Path, Path], Answer]
    heavy: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Target:
    """A file of a specimen, how it is damaged, and who reads it. `hashed`: whether the folder holds
    hashes of what this file says, so that no change of it may go unseen by `verify`."""

    name: str
    folder: str
    file: str
    kinds: tuple[Callable[..., bytes], ...]
    verbs: tuple[Verb, ...]
    weight: int = 1
    hashed: bool = False


def logits(model):
    """Of two sequences. What transformers itself raises, where a config is none that it can run, is
    as much a refusal as what it raises in from_pretrained."""
    try:
        return output(model)
    except Exception as error:
        raise lowbit.InputError(f"the model does not run: {type(error).__name__}") from error


def load(folder, scratch):
    return [logits(load_model(folder))]


def load_by_transformers(folder, scratch):
    from transformers import AutoModelForCausalLM

    return [logits(AutoModelForCausalLM.from_pretrained(folder).eval())]


def inspect(folder, scratch):
    command("inspect", folder, "--json")
    return load(folder, scratch)


def inspect_table(folder, scratch):
    command("inspect", folder)
    return load(folder, scratch)


def quantize(recipe, folder, scratch):
    out = scratch / "out"
    command("quantize", folder, "-o", out, "--recipe", recipe, "-q")
    return [logits(load_model(out))]


def quantize_by_file(folder, scratch):
    return quantize(folder / "recipe.yaml", folder.parent / "float", scratch)


def calibrated(folder, scratch):
    out, source = scratch / "out", folder.parent / "float"
    text = folder / "text.txt"
    options = ("--calibration", text, "--samples", 2, "--length", 16, "-q")
    command("quantize", source, "-o", out, "--recipe", "int8-static", *options)
    return [logits(load_model(out))]


def import_it(folder, scratch):
    out = scratch / "out"
    command("import", folder, "-o", out, "-q")
    return [logits(load_model(out))]


def import_file(folder, scratch):
    return import_it(folder / "model.gguf", scratch)


def dequantize(folder, scratch):
    out = scratch / "out"
    command("dequantize", folder, "-o", out, "-q")
    return [logits(load_model(out))]


def export(folder, scratch):
    out, back = scratch / "out", scratch / "back"
    command("export", folder, "--to", "compressed-tensors", "-o", out, "-q")
    command("import", out, "-o", back, "-q")
    return [logits(load_model(back))]


def perplexity(folder, scratch):
    data = folder.parent / "data" / "text.txt"
    return _scores("eval", folder, "--task", "perplexity", "--data", data, "--json")


def perplexity_of_data(folder, scratch):
    source, data = folder.parent / "float", folder / "text.txt"
    return _scores("eval", source, "--task", "perplexity", "--data", data, "--json")


def _scores(*arguments):
    study = json.loads(command(*arguments).splitlines()[-1])
    found = [m["metrics"] for model in study["models"] for m in model["measurements"]]
    return [json.dumps(found)]


def infer(task, file, folder, scratch):
    out = scratch / "predictions"
    name = ("--name", "mrpc") if task == "glue" else ("--stride", 4)
    short = ("--max-length", 32)
    source = folder.parent / task
    command(
        "infer", source, "--task", task, *name, "--data", folder / file, "-o", out, "-q", *short
    )
    return [out.read_text()]


def translations(folder, scratch):
    options = ("--task", "translation", "--data", folder / "pairs.tsv", "--max-new-tokens", 2)
    return _scores("eval", folder.parent / "translator", *options, "--json")


def encode(folder, scratch):
    tokenizer = load_tokenizer(folder)
    return [str(tokenizer and tokenizer(TEXT).input_ids)]


def recipe(folder, scratch):
    return [str(lowbit.Recipe.from_yaml(folder / "recipe.yaml"))]


def study(folder, scratch):
    found = Study.load(folder / "study.json")
    return [json.dumps(found.to_dict(), sort_keys=True), render_html(found), render_markdown(found)]


def journal(folder, scratch):
    found = Journal(folder, RUN, torch.device("cpu")).read(0)
    if found is None:
        raise lowbit.InputError("the stage is made anew")
    return [lowbit.dequantize(q) for q in found.stored.values()] + list(found.floats.values())


def module(folder, scratch):
    found = plain_module()
    lowbit.load(found, folder)
    with torch.no_grad():
        return [found(torch.linspace(-1, 1, 192).reshape(2, 96))]


def plain_module():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(96, 80), nn.GELU(), nn.Linear(80, 16))


LOAD = Verb("load_model", load)
FROM_PRETRAINED = Verb("from_pretrained", load_by_transformers)
INSPECT = Verb("inspect", inspect, slow=True)
TABLE = Verb("inspect, as a table", inspect_table, slow=True)
QUANTIZE = Verb("quantize", partial(quantize, "int4-all"), slow=True)
EVAL = Verb("eval", perplexity, heavy=True)
DEQUANTIZE = Verb("dequantize", dequantize)
QUANTIZED = (LOAD, LOAD, FROM_PRETRAINED, INSPECT, TABLE, DEQUANTIZE, EVAL)
IMPORT = (Verb("import", import_it),)
EXPORT = (Verb("export", export),)
FLOAT = (LOAD, LOAD, QUANTIZE, QUANTIZE, EVAL)
ENCODE = Verb("load_tokenizer", encode)
# The package that its vocabulary is read with may be absent.
HAS_GGUF = importlib.util.find_spec("gguf") is not None
GGUF = (
    Target("gguf", "gguf", "model.gguf", gguf_files.KINDS, (Verb("import", import_file),), 4),
) * HAS_GGUF

TARGETS = (
    Target("quantized weights", "int4", "model.safetensors", tensors.KINDS, QUANTIZED, 8, True),
    Target("static weights", "static", "model.safetensors", tensors.KINDS, QUANTIZED, 5, True),
    Target("binary weights", "bcq", "model.safetensors", tensors.KINDS, QUANTIZED, 5, True),
    Target("stacked weights", "stacked", "model.safetensors", tensors.KINDS, QUANTIZED, 3, True),
    Target("quantized config", "int4", "config.json", documents.JSON, QUANTIZED, 8, True),
    Target("static config", "static", "config.json", documents.JSON, QUANTIZED, 4, True),
    Target("stacked config", "stacked", "config.json", documents.JSON, QUANTIZED, 4, True),
    Target("exported weights", "int8", "model.safetensors", tensors.KINDS, EXPORT, 3, True),
    Target("exported config", "int8", "config.json", documents.JSON, EXPORT, 3, True),
    Target("awq weights", "awq", "model.safetensors", tensors.KINDS, IMPORT, 3),
    Target("awq config", "awq", "config.json", documents.JSON, IMPORT, 3),
    Target("gptq weights", "gptq", "model.safetensors", tensors.KINDS, IMPORT, 4),
    Target("gptq config", "gptq", "config.json", documents.JSON, IMPORT, 4),
    Target("foreign weights", "compressed", "model.safetensors", tensors.KINDS, IMPORT, 4),
    Target("foreign config", "compressed", "config.json", documents.JSON, IMPORT, 4),
    *GGUF,
    Target("float weights", "float", "model.safetensors", tensors.KINDS, FLOAT, 6),
    Target("float config", "float", "config.json", documents.JSON, FLOAT, 8),
    Target("index", "sharded", "model.safetensors.index.json", documents.JSON, FLOAT, 4),
    Target("generation config", "int4", "generation_config.json", documents.JSON, QUANTIZED, 2),
    Target("tokenizer", "int4", "tokenizer.json", documents.JSON, (ENCODE, ENCODE, EVAL), 5),
    Target(
        "tokenizer config",
        "int4",
        "tokenizer_config.json",
        documents.JSON,
        (ENCODE, ENCODE, EVAL),
        4,
    ),
    Target(
        "recipe",
        "recipe",
        "recipe.yaml",
        documents.YAML,
        (Verb("Recipe", recipe), Verb("quantize --recipe", quantize_by_file)),
        10,
    ),
    Target("model card", "float", "README.md", documents.YAML, (QUANTIZE,), 2),
    Target("study", "study", "study.json", documents.JSON, (Verb("Study", study),), 5),
    Target(
        "journal",
        "journal",
        "0000.safetensors",
        tensors.KINDS,
        (Verb("Journal", journal),),
        5,
        True,
    ),
    Target("journal's run", "journal", "run.json", documents.JSON, (Verb("Journal", journal),), 2),
    Target(
        "module", "module", "model.safetensors", tensors.KINDS, (Verb("load", module),), 5, True
    ),
    Target(
        "module's config", "module", "config.json", documents.JSON, (Verb("load", module),), 4, True
    ),
    Target(
        "text",
        "data",
        "text.txt",
        documents.TEXT,
        (
            Verb("eval perplexity", perplexity_of_data, heavy=True),
            Verb("quantize --calibration", calibrated, heavy=True),
        ),
        3,
    ),
    Target(
        "glue",
        "data",
        "mrpc.tsv",
        documents.TEXT,
        (Verb("infer glue", partial(infer, "glue", "mrpc.tsv"), slow=True),),
        3,
    ),
    Target(
        "squad",
        "data",
        "squad.json",
        documents.JSON,
        (Verb("infer squad", partial(infer, "squad", "squad.json")),),
        3,
    ),
    Target(
        "pairs",
        "data",
        "pairs.tsv",
        documents.TEXT,
        (Verb("eval translation", translations, heavy=True),),
        2,
    ),
)


def make_all(root: Path) -> None:
    """Every specimen in a folder of `root`."""
    save("gpt2", root / "float")
    (root / "float" / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [en, de]\n---\n\n# Own\n"
    )
    make("gpt2").save_pretrained(root / "sharded", max_shard_size="300KB")
    byte_tokenizer().save_pretrained(root / "sharded")
    for name, chosen in (("int4", "int4-all"), ("bcq", "bcq2-all"), ("stacked", stacked())):
        lowbit.quantize_checkpoint(str(root / "float"), chosen, root / name, progress=False)
    foreign.gptq(root / "gptq")
    foreign.awq(root / "awq")
    save("llama-untied", root / "llama")
    lowbit.quantize_checkpoint(str(root / "llama"), "int8", root / "int8", progress=False)
    lowbit.export_checkpoint(root / "int8", "compressed-tensors", root / "compressed")
    if HAS_GGUF:
        (root / "gguf").mkdir()
        lowbit.quantize_checkpoint(str(root / "llama"), q4_0(), root / "q4_0", progress=False)
        lowbit.export_checkpoint(root / "q4_0", "gguf", root / "gguf" / "model.gguf")
    model = make("gpt2")
    ids = torch.arange(64).reshape(2, 32) % VOCABULARY
    lowbit.quantize(model, "int8-all-static", progress=False, calibration=ids)
    model.save_pretrained(root / "static")
    byte_tokenizer().save_pretrained(root / "static")
    lowbit.save(quantized_module(), root / "module")
    _documents(root)
    _journal(root / "journal")
    _data(root)


def stacked():
    rules = (
        lowbit.Rule(
            "@embedding", lowbit.Clustered(lowbit.Binary(4, lowbit.Granularity("channel")))
        ),
        lowbit.Rule("@linear", lowbit.Absmax(8), "dynamic"),
    )
    return lowbit.Recipe(rules, name="stacked", strict=False)


def q4_0():
    linear = lowbit.Rule("@linear", lowbit.Absmax(4, lowbit.Granularity("group", 32)))
    return lowbit.Recipe((lowbit.Rule("@embedding"), linear), name="q4_0", strict=False)


def quantized_module():
    made = plain_module()
    lowbit.quantize(made, "int4", progress=False)
    return made


def _documents(root):
    (root / "recipe").mkdir()
    mine = lowbit.Recipe(
        (
            lowbit.Rule("@head"),
            lowbit.Rule("*.attn.*", lowbit.Absmax(8), "dynamic"),
            lowbit.Rule("@linear", lowbit.ZeroPoint(4, lowbit.Granularity("group", 64))),
        ),
        name="mine",
    )
    (root / "recipe" / "recipe.yaml").write_text(mine.to_yaml())
    plan = EvaluationPlan(pictures=True, peak=False)
    found = evaluate([root / "int4"], plan, root / "float", ["lowbit report"], progress=False)
    (root / "study").mkdir()
    (root / "study" / "study.json").write_text(json.dumps(found.to_dict()))


def _journal(folder):
    torch.manual_seed(5)
    weight = torch.randn(8, 96)
    stored = {"a": lowbit.ZeroPoint(4).quantize(weight), "b": lowbit.Binary(2).quantize(weight)}
    floats = {"norm": torch.randn(8)}
    Journal(folder, RUN, torch.device("cpu")).write(0, Solved(stored, floats, {"were odd": ["a"]}))


def _data(root):
    data = root / "data"
    data.mkdir()
    (data / "text.txt").write_text(TEXT)
    rows = "".join(f"{i % 2}\t1\t2\tone {i} cat\ttwo {i} dogs\n" for i in range(6))
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (data / "mrpc.tsv").write_text(header + rows)
    answers = [{"text": "cat", "answer_start": 4}]
    question = {"id": "q1", "question": "who sat", "answers": answers}
    paragraph = {"context": "the cat sat on one mat", "qas": [question]}
    (data / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (data / "pairs.tsv").write_text("one cat\teine Katze\nno dogs\tkeine Hunde\n")
    known = words("the", "cat", "sat", "on", "one", "mat", "who", "two", "dogs")
    make("bert-classifier").save_pretrained(root / "glue")
    known.save_pretrained(root / "glue")
    from transformers import BertConfig, BertForQuestionAnswering

    from tests.models import BERT

    BertForQuestionAnswering(BertConfig(**BERT)).save_pretrained(root / "squad")
    known.save_pretrained(root / "squad")
    save("bart", root / "translator")


def copy(root: Path, place: Path) -> None:
    """The specimens again, which costs no space and little time: links to files that nobody may
    write to."""
    shutil.copytree(root, place, copy_function=link)


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
