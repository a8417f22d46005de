"""ONNX models that lowbit exports, beside each program's own quantization of the same float model.

    pip install ".[bench]"
    python bench/onnx_files.py [--files FOLDER] [--threads 2] [--seconds 12] [--profile] [--write]

An encoder of random weights of MiniLM's shape, one text of 128 tokens. FOLDER keeps the files, so
that a second run only measures. All contenders of a table take turns; a table is printed when it is
measured. Errors are of the last hidden state, beside float32. Programs that are not installed are
left out, by name. The last table is ONNX Runtime's own profile of two files, by kind of operator;
--profile measures it alone, for a page of its own.
"""

import copy
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import Page, described
from transformers import BertConfig, BertModel
from turns import in_turns, parser, ready, times_faster

import lowbit
from lowbit.interop.onnx.graphs import graphs
from lowbit.interop.onnx.tracing import trace

RESULT = Path(__file__).parents[1] / "docs" / "results" / "onnx.md"
PROFILE = RESULT.with_name("onnx-profile.md")
SHAPE = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
RECIPES = ("int8-dynamic", "int8-static", "int8", "int4", "int4-dynamic")
PRODUCTS = ("int8-dynamic", "int8-static")  # whose weights may be int8 in the file
OWN = ("int8-dynamic", "int4-dynamic")
PROFILED = ("ONNX Runtime's quantize_dynamic, uint8 weights", "lowbit int8-dynamic")
PROFILED_ROUNDS = 100
TOKENS, BLOCK = 128, 64
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def onnx_runtime(file: Path, threads: int) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda feed: session.run(None, {n: feed[n] for n in names})[0]


def openvino(file: Path, threads: int) -> Run:
    import openvino as ov

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(file, "CPU", options).create_infer_request()
    names = [value.any_name for value in request.model_inputs]
    return lambda feed: request.infer({n: feed[n] for n in names})[0].copy()


def dynamic_of_onnx_runtime(plain: Path, file: Path, weights: str) -> None:
    """int8 with one scale for all activations of a product."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(plain, file, per_channel=True, weight_type=QuantType.from_string(weights))


def blocks_of_onnx_runtime(plain: Path, file: Path, bits: int) -> None:
    """MatMulNBits in blocks of 64 inputs."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(onnx.load(plain), block_size=BLOCK, bits=bits)
    tool.process()
    tool.model.save_model_to_file(str(file))


def static_of_nncf(plain: Path, file: Path) -> None:
    """Static int8, calibrated on the text that is measured."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(plain)
    names = [value.any_name for value in model.inputs]
    data = nncf.Dataset([{n: text()[n] for n in names}] * 4)
    kind = nncf.ModelType.TRANSFORMER
    static = nncf.quantize(model, data, model_type=kind, subset_size=4)
    ov.save_model(static, file, compress_to_fp16=False)


PEERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "ONNX Runtime's quantize_dynamic, uint8 weights": (
        "dynamic.onnx",
        partial(dynamic_of_onnx_runtime, weights="QUInt8"),
    ),
    "ONNX Runtime's quantize_dynamic, int8 weights": (
        "dynamic-int8.onnx",
        partial(dynamic_of_onnx_runtime, weights="QInt8"),
    ),
    "ONNX Runtime's MatMulNBits, 8 bits": ("8.onnx", partial(blocks_of_onnx_runtime, bits=8)),
    "ONNX Runtime's MatMulNBits, 4 bits": ("4.onnx", partial(blocks_of_onnx_runtime, bits=4)),
    "NNCF, static int8": ("nncf.xml", static_of_nncf),
}


def text() -> dict[str, np.ndarray]:
    """What is measured: one text."""
    ids = np.random.default_rng(0).integers(1000, 30_000, (1, TOKENS))
    whole = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {"input_ids": ids} | whole


def write_files(model: BertModel, folder: Path) -> dict[str, Path]:
    """What is measured, by name; a file that is there is kept."""
    import onnx_ir

    plain = folder / "float.onnx"
    if not plain.exists():
        (graph,) = graphs(copy.deepcopy(model))
        onnx_ir.save(trace(graph, 20), str(plain))
    found = {"float32": plain}
    for name, (file, make) in PEERS.items():
        try:
            if not (folder / file).exists():
                make(plain, folder / file)
            found[name] = folder / file
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
    for recipe in RECIPES:
        if not (folder / recipe).exists():
            ours = copy.deepcopy(model)
            ids = torch.from_numpy(text()["input_ids"])
            calibration = ids if recipe.endswith("static") else None
            lowbit.quantize(ours, recipe, progress=False, calibration=calibration)
            ours.save_pretrained(folder / recipe)
        for to in ("onnx", "onnx:vnni") if recipe in PRODUCTS else ("onnx",):
            form = to.partition(":")[2]
            exported = folder / f"{recipe}-onnx{form}"
            if not exported.exists():
                lowbit.export_checkpoint(folder / recipe, to, exported)
            found[f"lowbit {recipe}{form and f', {form}'}"] = exported / "model.onnx"
            print(f"{exported.name} is written", flush=True)
    return found


def here(exported: Path, recipe: str, feed: dict[str, np.ndarray]) -> Run:
    """Our own module, from the folder that the file was made of."""
    ours = BertModel.from_pretrained(exported.parents[1] / recipe)
    tensors = {n: torch.from_numpy(array) for n, array in feed.items()}
    return lambda _: ours(**tensors).last_hidden_state.numpy()


def measure(
    reader: Callable[[Path, int], Run],
    found: dict[str, Path],
    threads: int,
    budget: float,
    page: Page,
) -> None:
    """One table: all files in one program, and beside them our own kernels."""
    runs: dict[str, Run] = {}
    feed = text()
    for name, file in found.items():
        if reader is onnx_runtime and file.suffix == ".xml":
            continue
        try:
            run = reader(file, threads)
            run(feed)
            runs[name] = run
        except (RuntimeError, ValueError) as error:
            print(f"{reader.__name__} does not run {name}: {error}"[:300], flush=True)
    for recipe in OWN:
        runs[f"lowbit {recipe}, its own kernels"] = here(found[f"lowbit {recipe}"], recipe, feed)
    reference = runs["float32"](feed)
    taken = in_turns({n: partial(run, feed) for n, run in runs.items()}, budget, most=200)
    page.say("", f"## {NAMES[reader]}, threads: {threads}", "")
    page.say("| model | ms | × float32 | relative error | MiB |", "|---|---|---|---|---|")
    for name, run in runs.items():
        error = np.linalg.norm(run(feed) - reference) / np.linalg.norm(reference)
        ratio, ms = (
            times_faster(taken["float32"], taken[name]),
            statistics.median(taken[name]) * 1e3,
        )
        sides = [found[name], found[name].with_suffix(".bin")] if name in found else []
        size = sum(file.stat().st_size for file in sides if file.exists()) / 2**20
        page.say(f"| {name} | {ms:.2f} | {ratio:.2f} | {error:.4f} | {size:.1f} |")


def profile(found: dict[str, Path], page: Page) -> None:
    """Milliseconds of each kind of operator in ONNX Runtime, one thread: of each node the median of
    its runs, in rounds in which both files take turns."""
    import onnxruntime

    feed = text()
    sessions = {}
    with tempfile.TemporaryDirectory() as place:
        for name in PROFILED:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(place) / name)
            session = onnxruntime.InferenceSession(
                found[name], options, providers=["CPUExecutionProvider"]
            )
            sessions[name] = session, {v.name: feed[v.name] for v in session.get_inputs()}
        for _ in range(PROFILED_ROUNDS):
            for session, given in sessions.values():
                session.run(None, given)
        kinds = {
            name: by_kind(Path(session.end_profiling())) for name, (session, _) in sessions.items()
        }
    page.say("", "## By kind of operator: ONNX Runtime, threads: 1", "")
    page.say("| operator | " + " | ".join(f"{name}, ms (nodes)" for name in kinds) + " |")
    page.say("|---|" + "---|" * len(kinds))
    spent = [{kind: ms for kind, (ms, _) in of.items()} for of in kinds.values()]
    for kind in sorted({*spent[0], *spent[1]}, key=lambda k: -max(of.get(k, 0) for of in spent)):
        cells = [of.get(kind, (0.0, 0)) for of in kinds.values()]
        if max(ms for ms, _ in cells) >= 0.1:
            page.say(f"| {kind} | " + " | ".join(f"{ms:.2f} ({n})" for ms, n in cells) + " |")
    page.say("| all | " + " | ".join(f"{sum(of.values()):.2f}" for of in spent) + " |")


def by_kind(file: Path) -> dict[str, tuple[float, int]]:
    """Of one profile: kind of operator -> milliseconds, and nodes."""
    nodes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in json.loads(file.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"])
    spent: Counter[str] = Counter()
    for (kind, _), taken in nodes.items():
        spent[kind] += statistics.median(taken) / 1e3
    number = Counter(kind for kind, _ in nodes)
    return {kind: (ms, number[kind]) for kind, ms in spent.items()}


NAMES = {onnx_runtime: "ONNX Runtime", openvino: "OpenVINO"}


def main() -> None:
    asked = parser(__doc__, RESULT, 0)
    asked.add_argument("--files", type=Path, help="where the files are kept")
    asked.add_argument("--seconds", type=float, default=12, help="for each table")
    asked.add_argument("--profile", action="store_true", help=f"the last table, for {PROFILE.name}")
    options = asked.parse_args()
    warnings.simplefilter("ignore")
    ready(options.threads)
    model = BertModel(BertConfig(**SHAPE)).eval()
    result = PROFILE if options.profile else RESULT
    page = Page(result if options.write else None)
    shape = f"MiniLM's shape (6 layers of 384), random weights, 1 × {TOKENS} tokens."
    page.say(
        "# Exported to ONNX Runtime and OpenVINO" + (": by operator" if options.profile else ""),
        "",
        f"`python bench/onnx_files.py{' --profile' if options.profile else ''}`,"
        f" {time.strftime('%Y-%m-%d')}. {described()} {shape}"
        + (
            f" Of each node the median of {PROFILED_ROUNDS} runs, in which both files take turns."
            if options.profile
            else " Medians of rounds in which all take turns; × float32 is the median of the ratios"
            " within a round."
        ),
    )
    with tempfile.TemporaryDirectory() as place:
        folder = options.files or Path(place)
        folder.mkdir(exist_ok=True)
        found = write_files(model, folder)
        for threads in () if options.profile else sorted({1, options.threads}):
            torch.set_num_threads(threads)
            for reader in NAMES:
                measure(reader, found, threads, options.seconds, page)
        profile(found, page)


if __name__ == "__main__":
    main()
