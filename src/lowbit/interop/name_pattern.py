r"""Patterns of module names in the syntax of `re`, matched in a time that is proportional to the
length of the pattern and to that of the name.

`re` tries every way in which repetitions can share a name; there are exponentially many. Here a
part of a pattern maps places in a name to the places before them: those from which the part leads
to one of the given places. A name matches if all parts, the last one first, lead back to its start.

    a  \.  \d  .  [a-z]      one character
    a?  a*  a+               repeated, greedy or not
    (a|b)  (?:a|b)  (a)?     one of several, or none
    (?=a)  (?!a)             what follows, or does not
    ^  $                     the ends of the name

Repeated groups, counts and back-references are not read: names hardly need them.
"""

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Protocol

Places = Set[int]

TOKEN = re.compile(
    r"(?P<open>\((?:\?[:=!])?)"
    r"|(?P<close>\))(?:(?P<optional>\?)\??)?"
    r"|(?P<bar>\|)"
    r"|(?P<edge>[\^$])"
    r"|(?P<one>\.|\\[\W_dDsSwW]|\[\^?(?:\\.|[^\]\\])+\]|[^.^$*+?{}\[\]\\|()])"
    r"(?:(?P<times>[*+?])\??)?"
)


class Part(Protocol):
    def before(self, name: str, places: Places) -> Places:
        """The places in a name from which this part leads to one of `places`."""


Branches = tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class NamePattern:
    """A pattern. A name matches if it begins in the way of the pattern, as with `re.match`."""

    text: str
    branches: Branches

    @classmethod
    def parse(cls, text: str) -> "NamePattern":
        """Raises ValueError for what is not a pattern, or not one that is read here."""
        try:
            re.compile(text)
            return cls(text, _parse(text))
        except (re.error, OverflowError) as error:
            raise ValueError(f"it is not a valid pattern: {error}") from error

    def matches(self, name: str) -> bool:
        return 0 in _before(self.branches, name, _all(name))


@dataclass(frozen=True)
class Character:
    """A character of a kind. times: "?", "*" or "+" if it may come never or often."""

    kind: re.Pattern[str]
    times: str

    def before(self, name: str, places: Places) -> Places:
        repeated = set(places)
        if self.times in ("*", "+"):
            for place in reversed(range(len(name))):
                if place + 1 in repeated and self.kind.match(name, place):
                    repeated.add(place)
        if self.times == "*":
            return repeated
        once = {place - 1 for place in repeated if place and self.kind.match(name, place - 1)}
        return once | places if self.times == "?" else once


@dataclass(frozen=True)
class Group:
    """One of several branches. role: "?" if it may be none of them; "=" and "!" if it only asks
    whether one of them follows, or none."""

    branches: Branches
    role: str

    def before(self, name: str, places: Places) -> Places:
        if self.role == "=":
            return places & _before(self.branches, name, _all(name))
        if self.role == "!":
            return places - _before(self.branches, name, _all(name))
        found = _before(self.branches, name, places)
        return found | places if self.role == "?" else found


@dataclass(frozen=True)
class Edge:
    """The start or the end of a name."""

    mark: str

    def before(self, name: str, places: Places) -> Places:
        if self.mark == "^":
            return places & {0}
        return {place for place in places if name[place:] in ("", "\n")}


def _all(name: str) -> Places:
    return set(range(len(name) + 1))


def _before(branches: Branches, name: str, places: Places) -> Places:
    found: set[int] = set()
    for branch in branches:
        reached = places
        for part in reversed(branch):
            reached = part.before(name, reached)
        found |= reached
    return found


def _parse(text: str) -> Branches:
    """The branches of a valid pattern."""
    groups: list[tuple[str, list[list[Part]]]] = [("", [[]])]  # that are open, with their roles
    place = 0
    while place < len(text):
        found = TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"{text[place : place + 8]!r} in it is not read here")
        place = found.end()
        role, branches = groups[-1]
        if found["open"]:
            groups.append((found["open"][2:].strip(":"), [[]]))
        elif found["close"]:
            groups.pop()
            if role and found["optional"]:
                raise ValueError("an optional look at what follows is not read here")
            groups[-1][1][-1].append(Group(_fixed(branches), role or found["optional"] or ""))
        elif found["bar"]:
            branches.append([])
        elif found["edge"]:
            branches[-1].append(Edge(found["edge"]))
        else:
            branches[-1].append(Character(re.compile(found["one"]), found["times"] or ""))
    return _fixed(groups[0][1])


def _fixed(branches: Iterable[Iterable[Part]]) -> Branches:
    return tuple(map(tuple, branches))
