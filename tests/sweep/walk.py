"""One model class through all that lowbit does with it. Every step has one of these outcomes:

ok       right; a number after it is the relative error
FAIL     a wrong result
ERR      an exception that is not lowbit's own
refused  a LowbitError, with its sentence
n/a      the class has no such thing, or transformers alone does not do it
"""

import copy
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

import lowbit
from lowbit.fallbacks import SlowPathWarning
from lowbit.nn import QuantModule
from tests.sweep import oracle
from tests.sweep.classes import Registered
from tests.sweep.configs import tiny_config
from tests.sweep.models import Call, calls_of, randomize, run
from tests.sweep.oracle import difference, equal

SAME = 1e-4  # Rounding of float32 sums; 5e-7 is usual.
ARITHMETIC = 1e-5  # The same sums at another place in memory.
ROUNDED_INPUTS = 0.02  # A sum in another order moves some inputs by one of 255 levels.
NEAR_TILES, NEAR_FLOAT32 = 2e-2, 1e-3  # Attention with operands in bfloat16, and in float32.
MOST_PARAMETERS = 40_000_000
NEW_TOKENS = 8


class NotApplicable(Exception):  # noqa: N818
    """Why a step says nothing about lowbit."""


class Wrong(Exception):  # noqa: N818
    """What is wrong with a result."""


def sentence(error: BaseException) -> str:
    """The first words of an error, with its place in lowbit or else where it was raised."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/lowbit/" in frame.filename]
    place = ""
    if frames:
        frame = (ours or frames)[-1]
        place = f" [{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}]"
    return f"{type(error).__name__}: {text[:200]}{place}"


class Walk:
    """The steps, each a method; what several of them need is computed once."""

    def __init__(self, what: Registered, folder: Path) -> None:
        self.what, self.folder = what, folder
        self.kept: dict[str, Made] = {}

    def outcomes(self, steps: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """(step, outcome), one by one. Without a float model that runs, only that step's."""
        for step in steps:
            yield step, "running"
            outcome = self.outcome(step)
            yield step, outcome
            if step == "float" and not outcome.startswith("ok"):
                return

    def outcome(self, step: str) -> str:
        try:
            told = getattr(self, step)()
        except NotApplicable as why:
            return f"n/a: {why}"
        except Wrong as what:
            return f"FAIL: {what}"
        except lowbit.LowbitError as refusal:
            return f"refused: {str(refusal).splitlines()[0][:300]}"
        except Exception as error:
            return f"ERR: {sentence(error)}"
        return "ok" if told is None else f"ok {told:.1e}"

    # ---------------------------------------------------------------- the float model

    def float(self) -> None:
        """Builds, and runs in float32. The class is no case for lowbit if it does not."""
        try:
            self.model, self.calls = self._build()
        except Exception as error:
            raise NotApplicable(sentence(error)) from error

    def _build(self) -> tuple[PreTrainedModel, list[Call]]:
        self.model_class: type[PreTrainedModel] = getattr(transformers, self.what.model_class)
        padded = self.what.task == "sequence_classification"
        config = tiny_config(self.model_class, self.what.model_type, padded)
        with torch.device("meta"):
            size = sum(p.numel() for p in self.model_class(copy.deepcopy(config)).parameters())
        if size > MOST_PARAMETERS:
            raise ValueError(f"{size:,} parameters are not tiny")
        torch.manual_seed(0)
        model = self.model_class(config).float().eval()
        randomize(model)
        model.tie_weights()
        calls = calls_of(model)
        self.saved = self.folder / "float"
        self.unsaved = ""
        try:
            copy.deepcopy(model).save_pretrained(self.saved)
            loaded = self.load(self.saved)
            lost = difference(run(copy.deepcopy(loaded), calls), run(copy.deepcopy(model), calls))
        except Exception as error:
            self.unsaved = f"transformers alone does not save and load it: {sentence(error)}"
            return model, calls
        if not lost < 1e-5:
            self.unsaved = f"transformers alone saves and loads it with an error of {lost:.1g}"
            return model, calls
        return loaded, calls

    def load(self, folder: Path, **options: Any) -> PreTrainedModel:
        return self.model_class.from_pretrained(folder, **options).eval()

    def fresh(self) -> PreTrainedModel:
        return copy.deepcopy(self.model)

    def run(self, model: nn.Module) -> dict[str, Tensor]:
        return run(model, self.calls)

    def quantized(self, recipe: str) -> PreTrainedModel:
        """The model quantized in place."""
        model = self.fresh()
        lowbit.quantize(model, recipe, progress=False)
        return model

    def made(self, recipe: str) -> "Made":
        """The same, once for all steps that do not change it."""
        if recipe not in self.kept:
            model = self.quantized(recipe)
            self.kept[recipe] = Made(model, self.run(model))
        return self.kept[recipe]

    def checkpoint(self) -> Path:
        """The folder of the float model."""
        if self.unsaved:
            raise NotApplicable(self.unsaved)
        return self.saved

    # ---------------------------------------------------------------- eight bits

    @cached_property
    def int8_twin(self) -> nn.Module:
        return oracle.twin(self.model, self.made("int8").names, oracle.int8)

    @cached_property
    def int8_wanted(self) -> dict[str, Tensor]:
        return self.run(copy.deepcopy(self.int8_twin))

    def int8(self) -> float:
        return self._near(self.made("int8").outputs, self.int8_wanted, SAME)

    def reload(self) -> None:
        self._reloads("int8")

    def stream(self) -> None:
        output = self.folder / "streamed"
        lowbit.quantize_checkpoint(str(self.checkpoint()), "int8", output, progress=False)
        self._equal(self.load(output), self.made("int8"))

    def onload(self) -> None:
        config = lowbit.LowbitConfig("int8")
        model = self.load(self.checkpoint(), quantization_config=config)
        self._equal(model, self.made("int8"))

    # ---------------------------------------------------------------- everything

    def int8_all(self) -> float:
        return self._everything("int8-all", oracle.int8)

    def int4_all(self) -> float:
        return self._everything("int4-all", oracle.int4)

    def int8_all_reload(self) -> None:
        self._reloads("int8-all")

    def int4_all_reload(self) -> None:
        self._reloads("int4-all")

    def _everything(self, recipe: str, rounded: Callable[[Any], Any]) -> float:
        made = self.made(recipe)
        twin = oracle.twin(self.model, made.names, rounded)
        return self._near(made.outputs, self.run(twin), SAME)

    # ---------------------------------------------------------------- other ways to compute

    def dynamic(self) -> float:
        made = self.made("int8-dynamic")
        twin = copy.deepcopy(self.int8_twin)
        oracle.round_inputs(twin, made.names)
        wanted = self.run(twin)
        bound = ROUNDED_INPUTS
        if difference(made.outputs, wanted) > bound:
            # Routers, and the choice of the best queries, make much of little.
            oracle.disturb(twin, made.names)
            bound = max(bound, 3 * difference(self.run(twin), wanted))
        return self._near(made.outputs, wanted, bound)

    def dequantize(self) -> float:
        before = {name: t.shape for name, t in self.fresh().state_dict().items()}
        model = self.quantized("int8").dequantize()
        if before != {name: t.shape for name, t in model.state_dict().items()}:
            raise Wrong("state_dict has other names or shapes than the float model's")
        return self._near(self.run(model), self.int8_wanted, SAME)

    def bfloat16(self) -> float:
        twin = copy.deepcopy(self.int8_twin).to(torch.bfloat16)
        try:
            half = self.run(twin)
        except Exception as error:
            raise NotApplicable(f"transformers alone does not: {sentence(error)}") from error
        model = self.quantized("int8").to(torch.bfloat16)
        got = self.run(model)
        if dtypes := {n: t.dtype for n, t in got.items() if n in half and t.dtype != half[n].dtype}:
            raise Wrong(f"outputs are {dtypes}, not the float model's dtypes")
        usual = difference(half, self.int8_wanted)
        return self._near(got, self.int8_wanted, 4 * usual + 0.02)

    def padding(self) -> float:
        calls = self._padded()
        wanted = run(copy.deepcopy(self.int8_twin), calls)
        return self._near(run(self.made("int8").model, calls), wanted, SAME)

    def _padded(self) -> list[Call]:
        """The forward pass with five tokens less in the first row."""
        _, arguments = self.calls[0]
        mask = arguments.get("attention_mask")
        if mask is None or "input_ids" not in arguments:
            raise NotApplicable("it takes no attention mask of tokens")
        mask = mask.clone()
        mask[0, ..., -5:] = 0
        return [("forward", arguments | {"attention_mask": mask})]

    # ---------------------------------------------------------------- attention

    def attention(self) -> float:
        return self._attention("lowbit", NEAR_TILES if _has_tiles() else NEAR_FLOAT32)

    def attention_float32(self) -> float:
        return self._attention("lowbit_float32", NEAR_FLOAT32)

    def _attention(self, name: str, bound: float) -> float:
        try:
            calls = self._padded()
        except NotApplicable:
            calls = self.calls
        model = self.fresh()
        try:
            model.set_attn_implementation("eager")
            wanted = run(model, calls)
        except Exception as error:
            raise NotApplicable(f"transformers alone does not: {sentence(error)}") from error
        try:
            model.set_attn_implementation("sdpa")
            other = run(model, calls)
            if any(t.isnan().any() for t in wanted.values()):
                wanted = other  # Its eager attention divides by zero.
            usual = difference(other, wanted)
        except Exception:
            usual = 0.0  # Transformers has no other way that could differ.
        try:
            model.set_attn_implementation(name)
        except ValueError as error:
            raise NotApplicable(f"transformers does not set it: {sentence(error)}") from error
        if name not in {part._attn_implementation for part in _attention_configs(model)}:
            raise NotApplicable("transformers does not set it")
        return self._near(run(model, calls), wanted, max(bound, 3 * usual))

    # ---------------------------------------------------------------- programs

    def compiled(self) -> float:
        """The float model as a program, with and without padding, where it has one."""
        try:
            calls = self._padded()
        except NotApplicable:
            calls = self.calls
        model = lowbit.compile(self.fresh())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowPathWarning)
            error = self._near(self._there(model, calls), self._there(self.fresh(), calls), SAME)
        made = [program for name in lowbit.explain(model).programs.values() for program in name]
        if not any(program.refused is None for program in made):
            raise NotApplicable(made[0].refused if made else "it is called as it is")
        return error

    def _there(self, model: nn.Module, calls: list[Call]) -> dict[str, Tensor]:
        """Outputs of tokens that exist."""
        outputs = run(model, calls)
        mask = calls[0][1].get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return outputs
        exists = mask != 0
        return {n: t[exists] if t.shape[:2] == exists.shape else t for n, t in outputs.items()}

    # ---------------------------------------------------------------- text

    def generate(self) -> None:
        """lowbit.generate gives the ids of transformers, or refuses before the first token."""
        if not self.model.can_generate():
            raise NotApplicable("it does not generate")
        prompts = self._prompts()
        model = self.made("int8").model
        self._prepare(model)
        try:
            wanted = [self._ids(model.generate, prompt) for prompt in prompts]
        except Exception as error:
            self._prepare(control := self.fresh())
            try:
                self._ids(control.generate, prompts[-1])
            except Exception:
                why = f"transformers alone does not: {sentence(error)}"
                raise NotApplicable(why) from error
            raise
        for prompt, ids in zip(prompts, wanted, strict=True):
            seen = _Count()
            try:
                got = self._ids(
                    lambda **more: lowbit.generate(model, **more),  # noqa: B023
                    prompt,
                    stopping_criteria=[seen],
                )
            except lowbit.LowbitError as refusal:
                if seen.tokens:
                    raise Wrong(f"refuses after {seen.tokens} tokens: {refusal}") from refusal
                raise
            if not torch.equal(got, ids):
                raise Wrong(f"other ids: {got.flatten().tolist()}, not {ids.flatten().tolist()}")

    def _prompts(self) -> list[dict[str, Any]]:
        _, arguments = self.calls[0]
        given = {n: v for n, v in arguments.items() if not n.startswith("decoder_")}
        if self.model.config.is_encoder_decoder or "input_ids" not in given:
            return [given]
        lengths = {"input_ids", "attention_mask"}
        if set(given) > lengths:
            return [given]
        short = {n: v[:1, :9] for n, v in given.items()}
        prompts = [short, {n: v[:, :5] for n, v in short.items()}]
        if set(given) == lengths:
            padded = {n: v[:, :9].clone() for n, v in given.items()}
            padded["attention_mask"][0, :3] = 0
            padded["input_ids"][0, :3] = 0
            prompts.append(padded)
        return prompts

    def _prepare(self, model: PreTrainedModel) -> None:
        """Greedy search over a fixed number of tokens."""
        config, old = model.config, model.generation_config
        start = old.decoder_start_token_id or getattr(config, "decoder_start_token_id", None) or 2
        new = GenerationConfig(
            pad_token_id=0,
            bos_token_id=1,
            decoder_start_token_id=start if config.is_encoder_decoder else None,
        )
        for name, value in vars(old).items():
            if name not in vars(new) and not name.startswith("_"):
                setattr(new, name, value)
        model.generation_config = new

    def _ids(self, generate: Callable[..., Any], prompt: dict[str, Any], **more: Any) -> Tensor:
        torch.manual_seed(0)
        given = {name: v.clone() for name, v in prompt.items()}
        with torch.no_grad():
            ids = generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, **more)
        if isinstance(ids, (tuple, list)):
            return ids[0]
        return ids if isinstance(ids, Tensor) else ids["sequences"]

    # ---------------------------------------------------------------- comparing

    def _near(self, got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> float:
        error = difference(got, wanted)
        if not error <= bound:
            raise Wrong(f"differs by {error:.2g}; at most {bound:.1g} is right")
        return error

    def _equal(self, model: PreTrainedModel, made: "Made") -> None:
        """Equal outputs; or equal tensors, where a convolution adds up in an order of its own."""
        got = self.run(model)
        if equal(got, made.outputs):
            return
        error = difference(got, made.outputs)
        if not (error < ARITHMETIC and equal(model.state_dict(), made.model.state_dict())):
            raise Wrong(f"not equal bit for bit; differs by {error:.2g}")

    def _reloads(self, recipe: str) -> None:
        made = self.made(recipe)
        model = made.model if self.survives_running else self.quantized(recipe)
        model.save_pretrained(self.folder / recipe)
        self._equal(model, made)
        if self.unsaved:
            raise NotApplicable(self.unsaved)
        self._equal(self.load(self.folder / recipe), made)

    @cached_property
    def survives_running(self) -> bool:
        """Whether the float model saves after a forward pass what it was before: some divide
        weights in place, and do so again when they are loaded."""
        model = self.fresh()
        self.run(model)
        after, before = model.state_dict(), self.model.state_dict()
        return equal(after, before)


@dataclass(frozen=True)
class Made:
    """A quantized model, and what it computed at first."""

    model: PreTrainedModel
    outputs: dict[str, Tensor]

    @property
    def names(self) -> list[str]:
        """The modules that are quantized."""
        modules = self.model.named_modules(remove_duplicate=False)
        return [name for name, module in modules if isinstance(module, QuantModule)]


STEPS = (
    "float", "int8", "reload", "stream", "onload", "int8_all", "int8_all_reload", "int4_all",
    "int4_all_reload", "dynamic", "dequantize", "bfloat16", "padding", "generate", "attention",
    "attention_float32",
)  # fmt: skip


# A sweep of its own: what a program is made of is told by `lowbit.explain`, not by the page.
PROGRAMS = ("float", "compiled")


class _Count(StoppingCriteria):
    """Stops nothing, and counts tokens."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.tokens += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    return [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]


def _has_tiles() -> bool:
    from lowbit.kernels import native

    return not native.lacks("amx")


def walk(what: Registered, steps: tuple[str, ...] = STEPS) -> Iterator[tuple[str, str]]:
    """(step, "running") and (step, outcome) for each step of one class."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        yield from Walk(what, Path(folder)).outcomes(steps)
