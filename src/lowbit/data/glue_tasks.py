"""The table of GLUE's nine tasks (Wang et al. 2019): their folders, columns and classes."""

from dataclasses import dataclass

from lowbit.errors import check_choice


@dataclass(frozen=True)
class GlueTask:
    """One task: its folder, its columns, its classes.

    texts: the columns of its one or two sentences; label: that of the class or score.
    labels: the names of classes 0, 1, …; none for STS-B, whose labels are scores from 0 to 5.
    written: how files write the classes, where it is not by name.
    parts: suffixes of the dev and test sets. headless: columns where no line names them.
    hub_texts: the columns on the hub, where they are called otherwise.
    drops_cut_rows: whether rows of too few columns are left out, and counted.
    """

    name: str
    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    written: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)
    headless: tuple[str, ...] = ()
    hub_texts: tuple[str, ...] = ()
    drops_cut_rows: bool = False

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def splits(self) -> dict[str, tuple[str, ...]]:
        """Split -> the files that hold it, without .tsv. MNLI's parts are splits of their own."""
        whole = {
            "train": ("train",),
            "dev": tuple("dev" + part for part in self.parts),
            "test": tuple("test" + part for part in self.parts),
        }
        return {file: (file,) for files in whole.values() for file in files} | whole


PAIR = ("sentence1", "sentence2")
DIGITS = ("0", "1")
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            name="cola",
            folder="CoLA",
            texts=("sentence",),
            label="label",
            labels=("unacceptable", "acceptable"),
            written=DIGITS,
            headless=("source", "label", "original label", "sentence"),
        ),
        GlueTask("sst2", "SST-2", ("sentence",), "label", ("negative", "positive"), DIGITS),
        GlueTask(
            name="mrpc",
            folder="MRPC",
            texts=("#1 String", "#2 String"),
            label="Quality",
            labels=("not_equivalent", "equivalent"),
            written=DIGITS,
            hub_texts=PAIR,
        ),
        GlueTask(
            name="qqp",
            folder="QQP",
            texts=("question1", "question2"),
            label="is_duplicate",
            labels=("not_duplicate", "duplicate"),
            written=DIGITS,
            drops_cut_rows=True,
        ),
        GlueTask("stsb", "STS-B", PAIR, "score", labels=()),
        GlueTask(
            name="mnli",
            folder="MNLI",
            texts=PAIR,
            label="gold_label",
            labels=("entailment", "neutral", "contradiction"),
            parts=("_matched", "_mismatched"),
            hub_texts=("premise", "hypothesis"),
        ),
        GlueTask(
            "qnli", "QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment")
        ),
        GlueTask("rte", "RTE", PAIR, "label", ("entailment", "not_entailment")),
        GlueTask("wnli", "WNLI", PAIR, "label", ("not_entailment", "entailment"), DIGITS),
    )
}


def find_task(name: str) -> GlueTask:
    """The task of that name, however it is spelled: "sts-b", "STS_B" and "stsb" are one.

    Raises UsageError.
    """
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if plain not in TASKS:
        check_choice("GLUE task", name, TASKS)
    return TASKS[plain]


def plain_label(label: str) -> str:
    """One spelling of a class's name, as models of the hub have several: Not-Entailment."""
    return label.lower().replace("-", "_").replace(" ", "_")
