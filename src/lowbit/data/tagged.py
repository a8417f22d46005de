"""Words and their labels, as CoNLL 2003 has them (Tjong Kim Sang & De Meulder 2003).

EU      B-ORG       a word a line; its label is the last column; columns are separated by tabs,
rejects O           or by blanks where a line has no tab
                    an empty line ends a sentence; -DOCSTART- starts a document
"""

from dataclasses import dataclass
from pathlib import Path

from lowbit.data.lines import read_lines
from lowbit.data.split_file import split_file
from lowbit.errors import InputError

DOCUMENT = "-DOCSTART-"
# CoNLL's own names, and others'.
SPLITS = {"dev": ("dev", "valid")}


@dataclass(frozen=True)
class TaggedData:
    """Sentences, each of words, and as many labels; the line of the first word of each."""

    source: str
    words: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    @property
    def label_set(self) -> list[str]:
        """The labels in order."""
        return sorted({label for row in self.labels for label in row})


def read(data: str | Path, split: str = "dev") -> TaggedData:
    """A file, or that of a folder whose name starts with the split's (dev.txt; for dev also
    valid.txt). Raises InputError for a word without a label, and where there is no sentence."""
    file = split_file(Path(data), [f"{name}*" for name in SPLITS.get(split, (split,))])
    words: list[tuple[str, ...]] = []
    labels: list[tuple[str, ...]] = []
    lines: list[int] = []
    sentence: list[tuple[str, str]] = []
    for number, line in enumerate([*read_lines(file), ""], 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if line.strip() and fields[0] != DOCUMENT:
            if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
                raise InputError(f"{file}, line {number}: {line.strip()!r} is a word without label")
            sentence.append((fields[0].strip(), fields[-1].strip()))
        elif sentence:
            words.append(tuple(word for word, _ in sentence))
            labels.append(tuple(label for _, label in sentence))
            lines.append(number - len(sentence))
            sentence = []
    if not words:
        raise InputError(f"{file} has no sentences")
    return TaggedData(str(file), tuple(words), tuple(labels), tuple(lines))
