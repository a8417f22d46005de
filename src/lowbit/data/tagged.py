"""Words and their labels, as CoNLL 2003 has them (Tjong Kim Sang & De Meulder 2003).

EU      B-ORG       a word a line; its label is the last column; columns are separated by tabs,
rejects O           or by blanks where a line has no tab
                    an empty line ends a sentence; -DOCSTART- starts a document
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.data.lines import read_lines
from lowbit.errors import InputError

DOCUMENT = "-DOCSTART-"
# CoNLL's own names, and others'.
SPLITS = {"dev": ("dev", "valid")}


@dataclass(frozen=True)
class TaggedData:
    """Sentences, each of words, and as many labels."""

    source: str
    words: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def label_set(self) -> list[str]:
        """The labels in order."""
        return sorted({label for row in self.labels for label in row})


def read(data: str | Path, split: str = "dev") -> TaggedData:
    """A file, or that of a folder whose name starts with the split's (dev.txt; for dev also
    valid.txt). Raises InputError for a word without a label, and where there is no sentence."""
    file = _file(Path(data), split)
    words: list[tuple[str, ...]] = []
    labels: list[tuple[str, ...]] = []
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
            sentence = []
    if not words:
        raise InputError(f"{file} has no sentences")
    return TaggedData(str(file), tuple(words), tuple(labels))


def _file(data: Path, split: str) -> Path:
    if not data.is_dir():
        return data
    names: Sequence[str] = SPLITS.get(split, (split,))
    found = [file for name in names for file in sorted(data.glob(f"{name}*")) if file.is_file()]
    if len(found) != 1:
        raise InputError(
            f"{data} holds {len(found)} files {' or '.join(f'{name}*' for name in names)}; name the"
            " one to read"
        )
    return found[0]
