"""The public names, pinned; when they are imported, and when transformers is told of lowbit."""

import ast
import json
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit
from lowbit import public
from tests.models import make

NAMES = [
    "KEEP",
    "PRESETS",
    "Absmax",
    "AffineTensor",
    "Binary",
    "BinaryTensor",
    "Clustered",
    "Footprint",
    "Granularity",
    "InputError",
    "KQuant",
    "LowbitConfig",
    "LowbitError",
    "QTensor",
    "QatOptions",
    "Recipe",
    "Result",
    "Rule",
    "Scheme",
    "StackedTensor",
    "UsageError",
    "ZeroPoint",
    "compile",
    "dequantize",
    "dequantize_checkpoint",
    "explain",
    "export_checkpoint",
    "finish_qat",
    "footprint",
    "generate",
    "import_checkpoint",
    "load",
    "prepare_qat",
    "quantize",
    "quantize_calibrated",
    "quantize_checkpoint",
    "restore_float",
    "save",
    "save_programs",
    "simulate",
    "use_planes",
    "verify",
]


HEAVY = ("torch", "transformers", "transformers.modeling_utils")
MODEL = "from transformers import GPT2LMHeadModel as Model"
READ = "model = Model.from_pretrained('gpt2')"
# What programs do before they use a model that lowbit saved.
ORDERS = {
    "lowbit first": ["import lowbit", MODEL, READ],
    "transformers first": [MODEL, "import lowbit", READ],
    "loading of checkpoints first": [
        "import lowbit, transformers.core_model_loading as c, transformers.quantizers.auto as q",
        "assert q.AutoQuantizationConfig.from_pretrained('gpt2').recipe.name == 'int8'",
        "assert type(q.AutoHfQuantizer.from_pretrained('gpt2')).__name__ == 'LowbitQuantizer'",
        MODEL,
        READ,
    ],
    "a module of lowbit first": ["import lowbit.nn.experts, lowbit.quantization", MODEL, READ],
    "from a pickle": ["model = __import__('pickle').load(open('gpt2.pickle', 'rb'))"],
}
USE = [
    "import sys, torch, lowbit, lowbit.quantization.streaming",
    "model.set_attn_implementation('lowbit')",
    "from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS",
    "assert 'lowbit' in ALL_EXPERTS_FUNCTIONS",
    "assert model(input_ids=torch.arange(8)[None]).logits.isfinite().all()",
    "from lowbit import quantize",
    "assert callable(quantize) and quantize is lowbit.quantize is lowbit.quantize",
    "assert not [f for f in sys.meta_path if type(f).__module__ == 'lowbit.import_hook']",
]
# One process for each order; all have torch from the first.
RUN = """
import json, os, sys, traceback
import torch, torch._dynamo, torch.distributed.tensor
for name, lines in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        try:
            exec("\\n".join(lines), {"__name__": "program"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


def test_the_public_names_are_these():
    assert sorted(lowbit.__all__) == sorted(NAMES)
    assert all(hasattr(lowbit, name) for name in NAMES)
    assert set(NAMES) <= set(dir(lowbit))


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(public.__file__).read_text())
    seen = [alias.asname for node in tree.body[1:] for alias in node.names]
    assert sorted(seen) == sorted(NAMES)


def test_no_module_has_a_public_name():
    """Its import would replace the public name in lowbit's namespace, or be replaced by it."""
    modules = {module.name for module in pkgutil.iter_modules(lowbit.__path__)}
    assert "quantization" in modules and not modules & set(NAMES)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lowbit' has no attribute 'quantise'"):
        _ = lowbit.quantise


def run(code, **options):
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    print(done.stderr)
    return done.stdout


def test_importing_lowbit_imports_neither_torch_nor_transformers():
    code = f"import lowbit, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code) == "[]\n"


@pytest.mark.slow
def test_in_every_order_transformers_knows_lowbit_and_public_names_are_there(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int8")
    model.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2.pickle").write_bytes(pickle.dumps(model))
    programs = {name: [*lines, *USE] for name, lines in ORDERS.items()}
    assert run(RUN, input=json.dumps(programs), cwd=tmp_path) == ""
