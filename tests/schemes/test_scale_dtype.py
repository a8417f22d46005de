"""Scales in float32 on request: the codes are those of float32 arithmetic, to the last one."""

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import lowbit
from lowbit import InputError, UsageError
from lowbit.conversion.recipe import Recipe
from lowbit.formats import FORMATS
from lowbit.formats.granularity import Granularity
from lowbit.formats.packing import unpack
from lowbit.qat.prepare import QatOptions, finish_qat, prepare_qat
from lowbit.schemes import Absmax, Binary, Clustered, ZeroPoint, scheme_from_dict, scheme_to_dict
from lowbit.solvers import Solver
from tests.models import make, output

F = np.float32
GRANULARITIES = ["tensor", "channel", "group:16", "group:7"]


def parts(weight, granularity):
    """The weights that share a scale, as index pairs, and the index of their scale."""
    rows, columns = weight.shape
    if granularity == "tensor":
        return [((0, 0), np.s_[:, :])]
    width = columns if granularity == "channel" else int(granularity.split(":")[1])
    return [
        ((row, i), np.s_[row : row + 1, start : start + width])
        for row in range(rows)
        for i, start in enumerate(range(0, columns, width))
    ]


def codes_of(q):
    """Codes as integers, and those of zero."""
    if q.layout.signed:
        return q.codes.numpy().astype(int), 0
    return unpack(q.codes, q.bits, q.in_features).numpy().astype(int), 1 << (q.bits - 1)


def numbers(seed, shape=(6, 50)):
    spread = np.random.default_rng(seed)
    return (spread.standard_normal(shape) * spread.choice([0.02, 1, 30])).astype(F)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(st.integers(2, 8), st.sampled_from(["absmax", "minmax"]), st.integers(0, 2**32))
def test_absmax_is_the_plain_formula(granularity, bits, reach, seed):
    w, half = numbers(seed), 1 << (bits - 1)
    scheme = Absmax(bits, Granularity.parse(granularity), reach, scale_dtype="float32")
    q = scheme.quantize(torch.from_numpy(w))
    codes, zero = codes_of(q)
    assert q.scale.dtype == torch.float32
    for at, part in parts(w, granularity):
        high, low = max(w[part].max(), F(0)), min(w[part].min(), F(0))
        if reach == "minmax":
            scale, lowest = (high - low) / F(2 * half - 1), -half
        else:
            scale, lowest = np.abs(w[part]).max() / F(half - 1), 1 - half
        assert q.scale[at].item() == scale
        assert np.array_equal(codes[part] - zero, np.rint(w[part] / scale).clip(lowest, half - 1))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(st.integers(2, 8), st.integers(0, 2**32))
def test_zero_point_is_the_plain_formula(granularity, bits, seed):
    w, steps = numbers(seed), (1 << bits) - 1
    scheme = ZeroPoint(bits, Granularity.parse(granularity), scale_dtype="float32")
    q = scheme.quantize(torch.from_numpy(w))
    codes, _ = codes_of(q)
    for at, part in parts(w, granularity):
        high, low = max(w[part].max(), F(0)), min(w[part].min(), F(0))
        scale = (high - low) / F(steps)
        zero = np.rint(-low / scale).clip(0, steps)
        assert (q.scale[at].item(), q.zero_point[at].item()) == (scale, zero)
        assert np.array_equal(codes[part], (np.rint(w[part] / scale) + zero).clip(0, steps))


def test_codes_are_those_that_torch_finds_with_the_same_parameters():
    w = torch.from_numpy(numbers(1, (40, 70)))
    symmetric = Absmax(8, scale_dtype="float32").quantize(w)
    scale = (w.abs().amax(1) / 127).double()
    wanted = torch.quantize_per_channel(
        w, scale, torch.zeros(40, dtype=torch.int64), 0, torch.qint8
    )
    assert torch.equal(symmetric.codes, wanted.int_repr())
    q = ZeroPoint(8, scale_dtype="float32").quantize(w)
    scale, zero = q.scale[:, 0].double(), q.zero_point[:, 0].long()
    wanted = torch.quantize_per_channel(w, scale, zero, 0, torch.quint8)
    assert torch.equal(q.codes, wanted.int_repr())


def test_float16_scales_change_some_codes():
    w = torch.from_numpy(numbers(2, (64, 512)))
    half, single = Absmax(8).quantize(w), Absmax(8, scale_dtype="float32").quantize(w)
    changed = (half.codes.int() - single.codes.int()).abs()
    assert half.scale.dtype == torch.float16 and changed.max() == 1
    assert 0 < changed.float().mean() < 0.02


def test_the_largest_weights_that_are_quantized_have_a_scale():
    w = torch.tensor([[8.5e37, -8.5e37]])
    for scheme in (ZeroPoint(4, scale_dtype="float32"), Absmax(4, range="minmax")):
        assert scheme.quantize(w).scale.isfinite().all()
        for larger in (8.6e37, torch.inf):
            with pytest.raises(InputError):
                scheme.quantize(torch.tensor([[larger]]))


@pytest.mark.parametrize("nested", [False, True])
def test_greedy_binary_parameters_are_not_rounded(nested):
    w = numbers(3, (3, 32)).astype(np.float64)
    options = dict(granularity=Granularity.parse("channel"), solver="greedy")
    q = Binary(2, nested=nested, scale_dtype="float32", **options).quantize(
        torch.from_numpy(w.astype(F))
    )
    left = w - w.mean(1, keepdims=True)
    first = np.abs(left).mean(1)
    second = np.abs(left - first[:, None] * np.where(left >= 0, 1, -1)).mean(1)
    assert {a.dtype for a in (*q.alphas, *q.offsets)} == {torch.float32}
    assert np.allclose(q.alpha[0].numpy(), [first, second], rtol=2e-7)
    assert not np.allclose(q.alpha.half()[0].numpy(), [first, second], rtol=2e-7)


SCHEMES = [
    Absmax(4, scale_dtype="float32"),
    ZeroPoint(3, scale_dtype="float32"),
    Binary(2, scale_dtype="float32"),
    Clustered(Binary(3, scale_dtype="float32"), 2),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_it_comes_back_from_dicts_and_yaml_and_the_default_is_not_written(scheme, tmp_path):
    assert scheme_from_dict(scheme_to_dict(scheme)) == scheme
    assert scheme_to_dict(scheme)["scale_dtype"] == "float32"
    assert "scale_dtype" not in scheme_to_dict(type(scheme)())
    text = {"name": "x", "rules": [{"match": "@embedding", **scheme_to_dict(scheme)}]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(text))
    recipe = Recipe.from_yaml(tmp_path / "x.yaml")
    assert recipe.rules[0].scheme == scheme and Recipe.from_dict(recipe.to_dict()) == recipe


def test_another_dtype_is_refused():
    for scheme in (Absmax, ZeroPoint, Binary):
        with pytest.raises(UsageError, match="'bfloat16' is unknown; did you mean float16"):
            scheme(scale_dtype="bfloat16")


def recipe_of(scheme, **options):
    option = {"scheme": scheme, "granularity": "group:32", "scale_dtype": "float32"} | options
    return Recipe.from_dict(
        {
            "rules": [{"match": "@head", "keep": True}]
            + [{"match": kind, **option} for kind in ("@linear",)]
        }
    )


def scales_of(model):
    return [b for n, b in model.state_dict().items() if n.endswith((".scale", ".alpha_2"))]


@pytest.mark.parametrize(
    ("scheme", "solver"),
    [
        *(("zero-point", solver) for solver in ("nearest", "hqq", "gptq", "autoround", "awq")),
        ("absmax", "gptq"),
        ("binary", "binary"),
    ],
)
def test_every_solver_stores_float32_and_the_folder_comes_back(scheme, solver, tmp_path):
    model = make("bert")
    data = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    options = {"autoround": {"iterations": 2}}.get(solver, {})
    lowbit.quantize(
        model,
        recipe_of(scheme, bits=2 if scheme == "binary" else 4),
        calibration=None if solver in ("nearest", "hqq") else data,
        solver=Solver(solver, options),
        progress=False,
    )
    expected = output(model)
    assert {s.dtype for s in scales_of(model)} == {torch.float32}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert {s.dtype for s in scales_of(loaded)} == {torch.float32}
    assert torch.equal(output(loaded), expected)


@pytest.mark.parametrize("estimator", ["ste", "lsq"])
def test_training_towards_float32_scales_stores_them(estimator):
    model = make("bert")
    prepare_qat(model, recipe_of("zero-point", bits=4), QatOptions(estimator))
    expected = output(model)
    finish_qat(model, progress=False)
    assert {s.dtype for s in scales_of(model)} == {torch.float32}
    assert (output(model) - expected).norm() <= 1e-5 * expected.norm()


def test_what_is_stored_says_how_it_decodes():
    w = torch.from_numpy(numbers(4))
    for scheme in SCHEMES[:3]:
        q = scheme.quantize(w.repeat(1, 2))
        layout = type(q.layout).from_dict(q.layout.to_dict())
        assert layout == q.layout and layout.scale_dtype == torch.float32
        back = layout.assemble(q.tensors(), q.in_features)
        assert torch.equal(FORMATS[layout.format].decode(back), FORMATS[layout.format].decode(q))
