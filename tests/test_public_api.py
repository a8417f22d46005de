"""The public names, pinned."""

import lowbit

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


def test_the_public_names_are_these():
    assert sorted(lowbit.__all__) == sorted(NAMES)
    assert all(hasattr(lowbit, name) for name in NAMES)
