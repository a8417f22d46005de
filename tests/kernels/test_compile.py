"""torch.compile takes modules and whole models as one graph."""

import subprocess
import sys

import pytest

# In a process of its own: the shape checks that tests put around functions cannot be traced.
SCRIPT = """
import sys
import torch
import lowbit
from lowbit.formats import CHANNEL, TENSOR, AffineLayout, StaticScale, group
from lowbit.kernels import ops
from lowbit.nn import QuantLinear
from lowbit.schemes import Absmax, Binary, Clustered, ZeroPoint
from tests.models import make, output

schemes = (Absmax(8, CHANNEL), Binary(2, group(16), solver="greedy"), Absmax(8, TENSOR),
           Absmax(4, group(16)), ZeroPoint(8, CHANNEL), ZeroPoint(3, group(16)),
           Binary(3, CHANNEL, offset=False, solver="greedy"),
           Clustered(Binary(4, group(16), solver="greedy")))
recipes = ("int8-dynamic", "int4-all", "bcq2")
number = int(sys.argv[1])
torch.manual_seed(0)
for scheme in schemes[:number]:
    for activations in ("float", "dynamic"):
        q, bias = scheme.quantize(torch.randn(24, 40)), torch.randn(24)

        def layer(x, ids):
            x = x + ops.embedding(ids, q, torch.float32)
            return ops.linear(x, q, bias, activations, "gelu").relu()

        torch._dynamo.reset()
        x, ids = torch.randn(3, 40), torch.tensor([1, 5, 9])
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, ids), layer(x, ids)), (scheme, activations)

for recipe in recipes[:number]:
    model = make("bert")
    lowbit.quantize(model, recipe)
    expected = output(model)
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(model), expected)

layer = QuantLinear(AffineLayout(8, CHANNEL, False), 40, 24, None, "static").eval()
layer.hold(Absmax(8, CHANNEL).quantize(torch.randn(24, 40))).set_static(StaticScale(0.02, 5))
x = torch.randn(3, 40)
with torch.no_grad():
    expected = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)

class Reads(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x.to(self.layer.weight.dtype) @ self.layer.weight.T

for packed in (False, True):
    q = Absmax(8, CHANNEL).quantize(torch.randn(24, 40))
    layer = QuantLinear(q.layout, 40, 24, None, "dynamic").hold(q)
    if packed:
        layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(Reads(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), x @ ops.dequantize(q).T)
# One graph for texts of any number and length.
for recipe in recipes[: number // 2]:
    model = make("bert")
    lowbit.quantize(model, recipe, progress=False)
    texts = [torch.arange(3, 3 + rows * n).view(rows, n) % 200 for rows, n in ((2, 5), (3, 9))]
    with torch.no_grad():
        expected = [model(ids)[0] for ids in texts]
        size = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
        exported = torch.export.export(model, (texts[0],), dynamic_shapes={"input_ids": size})
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        for ids, y in zip(texts, expected):
            torch.testing.assert_close(exported.module()(ids)[0], y)
            torch.testing.assert_close(compiled(ids)[0], y)
print("compiled")
"""


@pytest.mark.parametrize(
    "number", [pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.nightly)]
)
def test_modules_and_models_compile_to_one_graph_and_give_the_same(number):
    """So many of the schemes and of the recipes."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(number)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("compiled\n"), done.stderr[-2000:]
