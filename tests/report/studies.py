"""Studies to report on: one that looks real, and the odd ones."""

import math
from dataclasses import replace

import numpy as np

from lowbit.conversion.plan import Summary
from lowbit.evaluation.study import (
    Histogram,
    Measurement,
    Metric,
    ModelRecord,
    ModuleRecord,
    Sample,
    Study,
    Timing,
)

KINDS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
EDGE, BINS = 0.4, 151
# name, levels of its grid (0: float), bits per weight, speed-ups, perplexity, word accuracy
MODELS = (
    ("gpt2-wikitext2", 0, 32.0, (1.0, 1.0, 1.0), 49.5, 0.644),
    ("int8-dynamic", 255, 8.4, (2.9, 2.4, 1.9), 49.55, 0.6437),
    ("int4", 15, 4.9, (0.78, 1.12, 2.6), 50.4, 0.631),
    ("int4-all-dynamic", 15, 4.4, (2.1, 2.2, 3.4), 51.2, 0.622),
    ("bcq3", 8, 3.9, (0.62, 0.9, 2.8), 56.9, 0.577),
    ("int2", 4, 2.8, (0.9, 1.3, 3.9), 812.0, 0.112),
)
SHAPES = ((1, 128, 0), (8, 128, 0), (1, 32, 64))
SECONDS = (0.112, 0.673, 1.91)
SOURCES = ("The castle was built in", "In the second half of the season", "Its population in 2011")
CONTINUATION = (
    " the early twelfth century by the first Earl, and was enlarged twice before the siege of 1216."
)
SWAPS = {
    1: {"enlarged": "extended"},
    2: {"early": "late", "twice": ""},
    3: {"twelfth": "thirteenth", "siege": "great siege"},
    4: {"castle": "church", "Earl": "king of the first king of the", "1216": "1216 1216"},
    5: {"early": "the the", "century": "the", "siege": ", , ,", "Earl": "<unk>"},
}


def histogram(values):
    counts, _ = np.histogram(values, np.linspace(-EDGE, EDGE, BINS + 1))
    return Histogram(EDGE, tuple(map(int, counts)), int(len(values) - counts.sum()))


def modules(names, levels, generator, size=6000):
    found = []
    for name in names:
        spread = 0.05 + 0.04 * generator.random()
        weights = (
            spread * generator.standard_normal(size) / np.sqrt(generator.chisquare(6, size) / 6)
        )
        if not levels or name == "lm_head":
            found.append(
                ModuleRecord(name, "float32", size, 4 * size, histogram=histogram(weights))
            )
            continue
        step = 2 * np.abs(weights).reshape(-1, 50).max(1, keepdims=True) / max(1, levels - 1)
        decoded = (np.round(weights.reshape(-1, 50) / step) * step).ravel()
        error = float(((weights - decoded) ** 2).sum() / (weights**2).sum())
        found.append(
            ModuleRecord(
                name,
                f"affine {max(2, math.ceil(math.log2(levels)))} bits, groups of 64",
                size,
                size * levels // 255,
                "avx512_vnni",
                "the fastest that supports it",
                error,
                histogram(decoded),
            )
        )
    return tuple(found)


def outputs(index):
    text = CONTINUATION
    for old, new in SWAPS.get(index, {}).items():
        text = text.replace(old, new)
    return tuple(Sample(s, text, CONTINUATION if s is SOURCES[0] else None) for s in SOURCES)


def measurements(index, perplexity, accuracy):
    metrics = {
        "perplexity": Metric(perplexity, "lower"),
        "loss": Metric(math.log(perplexity), "lower"),
    }
    if index:
        metrics["KL divergence"] = Metric(0.4 / MODELS[index][2] ** 2, "lower", "in nats")
        metrics["agreement"] = Metric(1 - 0.2 / MODELS[index][2], "higher", "with the reference")
    settings = {"context": 512, "stride": 256, "beams": None}
    return (
        Measurement("perplexity", "wikitext-2/test.txt", 24_871, "tokens", settings, metrics),
        Measurement(
            "generation", "prompts.txt", 3, "prompts", {"new tokens": 64}, {}, outputs(index)
        ),
        Measurement(
            "pronunciation",
            "words.json",
            1000,
            "words",
            {"beams": 1},
            {"word accuracy": Metric(accuracy, "higher")},
        ),
    )


def timings(gains):
    return tuple(
        Timing(
            batch,
            length,
            new,
            20,
            2,
            seconds / gain,
            0.06 * seconds / gain,
            None if gain == 1.0 else seconds,
        )
        for (batch, length, new), seconds, gain in zip(SHAPES, SECONDS, gains, strict=True)
    )


def model(index, names, seed=0):
    name, levels, bits, gains, perplexity, accuracy = MODELS[index]
    quantized = index > 0
    stored = int(7_100_000 * bits / 8)
    recipe = {"name": name, "rules": [{"match": "@linear", "scheme": {"bits": round(bits)}}]}
    summaries = (
        Summary(True, "Conv1D: rule @linear", 32, 5_200_000, "transformer.h.0.attn.c_attn"),
        Summary(
            False, f"Embedding: recipe {name} keeps @embedding", 2, 1_900_000, "transformer.wte"
        ),
    )
    return ModelRecord(
        name,
        f"models/{name}",
        "GPT2LMHeadModel",
        recipe if quantized else None,
        7_100_000,
        bits,
        stored,
        stored + 2_400_000,
        stored + 900_000,
        stored + 1_500_000,
        2 * stored + 40_000_000 if index != 3 else None,
        ("avx512_vnni",) if quantized else (),
        summaries if quantized else (),
        measurements(index, perplexity, accuracy),
        timings(gains),
        modules(names, levels, np.random.default_rng(seed)),
    )


ENVIRONMENT = {
    "lowbit": "0.1.0",
    "transformers": "5.23.0",
    "torch": "2.10.0+cpu",
    "python": "3.11.9",
    "system": "Linux",
    "processor": "Intel(R) Xeon(R) Platinum 8481C (avx2, avx512_vnni, amx_int8)",
    "threads": 2,
}


def gpt_names(layers=8):
    inside = [f"transformer.h.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    return ["transformer.wte", "transformer.wpe", *inside, "lm_head"]


def study(count=6, names=None, seed=0):
    records = tuple(model(i, gpt_names() if names is None else names, seed) for i in range(count))
    commands = ("lowbit compare gpt2-wikitext2 --recipes int8-dynamic,int4 --task perplexity",)
    return Study(records, ENVIRONMENT, 20, commands)


def changed(made, **fields):
    """The study with these fields in every record."""
    return replace(made, models=tuple(replace(record, **fields) for record in made.models))


def with_metric(made, index, value, task=0):
    """The study with another value of the deciding metric of one model."""
    record = made.models[index]
    measured = list(record.measurements)
    name = next(iter(measured[task].metrics))
    metric = replace(measured[task].metrics[name], value=value)
    measured[task] = replace(measured[task], metrics={**measured[task].metrics, name: metric})
    records = list(made.models)
    records[index] = replace(record, measurements=tuple(measured))
    return replace(made, models=tuple(records))


SEQ2SEQ = [
    f"model.{stack}.layers.{layer}.{kind}"
    for stack, kinds in (
        ("encoder", ("self_attn.q_proj", "self_attn.k_proj", "fc1", "fc2")),
        (
            "decoder",
            ("self_attn.q_proj", "encoder_attn.q_proj", "encoder_attn.v_proj", "fc1", "fc2"),
        ),
    )
    for layer in range(3)
    for kind in kinds
]

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>",
    "\u202egnp.exe\u202c abc \u2066 def",
    "x" * 10_000,
    "nul \x00 bell \x07 escape \x1b[31m lone \ud800 end \uffff",
    "a | b `c` **d** $e$ {{ 7*7 }} {% raw %} ]]> --> </svg></style>",
)


def hostile():
    """Every string of the study is an attack."""
    made = study(4, ["a.0.<b>", HOSTILE[4], HOSTILE[0], HOSTILE[1], HOSTILE[3]])
    records = []
    for i, record in enumerate(made.models):
        text = HOSTILE[i % len(HOSTILE)]
        measured = tuple(
            replace(
                m,
                task=m.task + HOSTILE[4],
                data=HOSTILE[0],
                unit=HOSTILE[1],
                settings={HOSTILE[0]: HOSTILE[3]},
                metrics={k + HOSTILE[4]: replace(v, note=HOSTILE[0]) for k, v in m.metrics.items()},
                samples=tuple(Sample(t, t + str(i), t) for t in HOSTILE),
            )
            for m in record.measurements
        )
        summaries = tuple(Summary(True, t, 1, 1, t) for t in HOSTILE)
        records.append(
            replace(
                record,
                name=text,
                path=text,
                architecture=text,
                recipe={text: text},
                kernels=HOSTILE,
                measurements=measured,
                coverage=summaries,
                modules=tuple(replace(m, stored_as=text, why=text) for m in record.modules),
            )
        )
    return Study(tuple(records), {HOSTILE[0]: HOSTILE[4]}, 0, HOSTILE)


def odd_studies():
    """Name -> study: what a report must survive."""
    names = gpt_names(1)[1:4]
    whole = study(2, names)
    return {
        "one model": study(1),
        "no measurements": changed(whole, measurements=()),
        "no timings": changed(whole, timings=()),
        "no modules": changed(whole, modules=()),
        "nothing at all": changed(
            whole,
            measurements=(),
            timings=(),
            modules=(),
            coverage=(),
            kernels=(),
            recipe=None,
            disk_bytes=None,
            resident_after_forward_bytes=None,
            peak_bytes=None,
        ),
        "NaN metric": with_metric(with_metric(study(3, names), 1, math.nan), 2, math.inf),
        "NaN reference": with_metric(whole, 0, math.nan),
        "encoder and decoder": study(2, SEQ2SEQ),
        "200 modules": study(2, [*gpt_names(40), *(f"extra_{i}" for i in range(40))]),
        "200 experts": study(2, [f"h.0.experts.{i}.w1" for i in range(200)]),
        "hostile": hostile(),
    }
