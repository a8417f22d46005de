"""Which words make an entity, as CoNLL's own script reads labels.

B-PER   the first word of a person          I-PER   a further one; the first where none precedes
O       no entity                           E-, S-  the last, a single one (IOBES); L-, U- too
"""

from collections.abc import Sequence

from lowbit.data.word_tokens import OUTSIDE

STARTS, ENDS, INSIDE = "BSU", "ESLU", "I"
Entity = tuple[str, int, int]  # kind, first word, word after the last


def parts(label: str) -> tuple[str, str]:
    """Prefix and kind of a label; no prefix for a label that has none, such as NOUN."""
    prefix, dash, kind = label.partition("-")
    return (prefix, kind) if dash and prefix in {*STARTS, *ENDS, INSIDE} else ("", label)


def entities(labels: Sequence[str]) -> set[Entity]:
    """The entities of a sentence."""
    found: set[Entity] = set()
    kind, first, open_ = "", 0, False
    for place, label in enumerate([*labels, OUTSIDE]):
        prefix, next_kind = parts(label)
        if open_ and (label == OUTSIDE or prefix in tuple(STARTS) or next_kind != kind):
            found.add((kind, first, place))
            open_ = False
        if label != OUTSIDE:
            if not open_:
                kind, first, open_ = next_kind, place, True
            if prefix in tuple(ENDS):
                found.add((kind, first, place + 1))
                open_ = False
    return found


def marks_entities(labels: Sequence[str]) -> bool:
    """Whether labels mark the beginnings of entities; labels of parts of speech do not."""
    return any(parts(label)[0] for label in labels)
