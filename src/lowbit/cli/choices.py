"""What help shows of tables elsewhere, as plain data: importing those tables takes seconds.

A test compares each with its table.
"""

TASKS = (
    "perplexity",
    "generate",
    "glue",
    "squad",
    "token-classification",
    "translation",
    "similarity",
)
BENCHMARKS = ("glue", "squad")  # that `infer` predicts
SOLVERS = ("nearest", "hqq", "gptq", "binary", "autoround", "awq", "smoothquant")
MEASURES = ("divergence", "hessian")  # of sensitivity
PLANS = ("1", "2", "3", "4", "bcq-reference", "chung-2020", "bcq-mixed", "bcq-clustered")
FORMATS = ("gguf", "compressed-tensors", "onnx")  # that `export` writes
ROUNDINGS = (  # that `simulate` knows
    "absmax",
    "zero-point",
    "int8",
    "int8-zeropoint",
    "int4",
    "int3",
    "int2",
    "int4-k",
    "int3-k",
    "int2-k",
    "bcq1",
    "bcq2",
    "bcq3",
    "bcq4",
)
ESTIMATOR, RANGES, QAT_START = "ste", "mse", 0
DEMO_STEPS = 200
MEGA = 10**6
SHARD_MEGABYTES = 500
