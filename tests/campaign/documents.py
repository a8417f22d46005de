"""Damage to documents of keys and values (JSON, YAML): to what they say, and to their bytes.

Each function is a kind of damage: (random numbers, bytes) -> bytes.
"""

import json
from random import Random

import yaml

# What a value is replaced by. Numbers that size something, names that leave a folder, terminal
# escapes, markup, code for whoever evaluates it.
VALUES = (
    None,
    True,
    False,
    "",
    0,
    -1,
    1,
    3,
    10**9,
    10**12,
    2**63,
    2**64,
    0.5,
    -1e308,
    [],
    {},
    [[]],
    [None],
    {"": None},
    "x" * 100_000,
    "../../outside",
    "/dev/zero",
    "float64",
    "gpt2",
    "group:0",
    "\x1b[2J\x1b]0;owned\x07",
    "[red]not[/red] [/closed",
    "two\nlines",
    "\u202egnp.exe",
    "\ud800",
    "<script>alert(1)</script>",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "__import__('pathlib').Path('CANARY').touch()",
    "own--model.Own",
)
# Numbers that only a writer of text can say.
WRITTEN = ("9" * 5000, "1e999", "-1e999", "NaN", "-Infinity", "1" + "0" * 300 + ".5")
PLACE = "@@here@@"


def places(value, path=()):
    """The paths of all values inside."""
    found = [path] if path else []
    children = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        found += places(child, (*path, key))
    return found


def parent_of(value, path):
    for key in path[:-1]:
        value = value[key]
    return value


def changed(random, document, change):
    """The document after `change(parent, key)` at a place of it; the top levels are hit more."""
    found = places(document)
    if not found:
        return document
    depth = random.choice((1, 1, 2, 3, 4, 99))
    path = random.choice([p for p in found if len(p) <= depth] or found)
    change(parent_of(document, path), path[-1])
    return document


def replaced(random, document):
    value = random.choice(VALUES)

    def change(parent, key):
        parent[key] = value

    return changed(random, document, change)


def deleted(random, document):
    return changed(random, document, lambda parent, key: parent.pop(key))


def renamed(random, document):
    def change(parent, key):
        if isinstance(parent, dict):
            parent[random.choice(("", "x" * 1000, "\x1b[31m", "quant_method", key + "_"))] = (
                parent.pop(key)
            )

    return changed(random, document, change)


def swapped(random, document):
    first, second = random.choices(places(document), k=2)
    a, b = parent_of(document, first), parent_of(document, second)
    inside = first[: len(second)] == second or second[: len(first)] == first
    if not inside:
        a[first[-1]], b[second[-1]] = b[second[-1]], a[first[-1]]
    return document


def nudged(random, document):
    """A number that is another one."""

    def change(parent, key):
        if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = random.choice((parent[key] * 2, parent[key] + 1, -parent[key], 0))
        else:
            parent[key] = random.choice(VALUES)

    return changed(random, document, change)


CHANGES = (replaced, replaced, replaced, deleted, renamed, swapped, nudged)


def json_value(random, stored):
    document = random.choice(CHANGES)(random, json.loads(stored))
    return json.dumps(document).encode()


def json_written(random, stored):
    """A number that json.dumps would not write."""
    document = json.loads(stored)
    changed(random, document, lambda parent, key: parent.__setitem__(key, PLACE))
    return json.dumps(document).replace(f'"{PLACE}"', random.choice(WRITTEN)).encode()


def json_nested(random, stored):
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    depth = random.choice((200, 5_000, 100_000))
    nest = opening * depth + "1" + closing * depth
    if random.random() < 0.5:
        return nest.encode()
    document = json.loads(stored)
    changed(random, document, lambda parent, key: parent.__setitem__(key, PLACE))
    return json.dumps(document).replace(f'"{PLACE}"', nest).encode()


def json_repeated(random, stored):
    """A key twice: programs differ in which they take."""
    text = json.dumps(json.loads(stored))
    key = random.choice([k for k in json.loads(stored)] or ["a"])
    return (text[:-1] + f", {json.dumps(key)}: {json.dumps(random.choice(VALUES))}}}").encode()


def yaml_value(random, stored):
    start, rest = b"", b""
    if stored.startswith(b"---\n"):  # a model card
        start, stored, rest = stored.partition(b"---\n")[1], *stored[4:].partition(b"---\n")[::2]
        rest = b"---\n" + rest
    document = random.choice(CHANGES)(random, yaml.safe_load(stored))
    written = yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
    return start + written + rest


def yaml_hostile(random, stored):
    """What a YAML reader may stumble over, as the whole file or as one of its values."""
    bomb = "&a0 [x, x]"
    names = "\n".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, random.choice((9, 30)))
    )
    hostile = (
        f"a0: {bomb}\n{names}\n",
        "&a [*a]\n",
        "a: &a\n  <<: *a\n",
        "!!python/object/apply:os.system ['touch CANARY']\n",
        "!!python/object/apply:pathlib.Path.touch [!!python/object:pathlib.Path {}]\n",
        "rules: !!binary aGVsbG8=\n",
        "rules: 2001-12-14t21:59:43.10-05:00\n",
        "rules: 9999999-99-99\n",
        f"rules: {'9' * 1_000_000}\n",
        f"rules: 0x{'f' * 1_000_000}\n",
        f"rules: {'1:' * 100_000}1\n",
        "[" * 100_000,
        "{a: " * 2_000 + "1" + "}" * 2_000,
        "- " * 5_000 + "x",
        "---\na: 1\n---\nb: 2\n",
        "%YAML 9.9\n---\na\n",
        "? [a, b]\n: c\n",
        "? {a: b}\n: c\n",
        "!!set {a, b}\n",
        "!!omap [a: 1]\n",
        "!!float .nan\n",
        "rules: [" + "&x x, " * 50_000 + "x]",
        "a: *nowhere\n",
        "\t- x\n",
        "a: " + "'" * 99_999,
        "# " + "x" * 2_000_000,
    )
    chosen = random.choice(hostile)
    return (stored.decode() + chosen if random.random() < 0.3 else chosen).encode()


def truncated(random, stored):
    return stored[: random.randrange(len(stored))]


def flipped(random, stored):
    """One bit."""
    place = random.randrange(len(stored))
    return stored[:place] + bytes([stored[place] ^ 1 << random.randrange(8)]) + stored[place + 1 :]


def inserted(random, stored):
    place = random.randrange(len(stored) + 1)
    junk = random.choice(
        (
            b"\0",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"\xc3",
            b"{",
            b"]",
            b"\x1b[2J",
            b"\r\r\n",
            b"\n" * 999,
        )
    )
    return stored[:place] + junk + stored[place:]


def emptied(random, stored):
    return random.choice((b"", b"\n", b"{}", b"[]", b"null", b"0", b'""', b"\xff"))


JSON = (
    json_value,
    json_value,
    json_value,
    json_value,
    json_written,
    json_nested,
    json_repeated,
    truncated,
    flipped,
    inserted,
    emptied,
)
YAML = (yaml_value, yaml_value, yaml_hostile, yaml_hostile, truncated, flipped, inserted, emptied)


def line_of_any_length(random, stored):
    """As long as can be scored in the time of a case; tests/data has longer ones."""
    return stored + b"x" * random.choice((10_000, 100_000, 200_000)) + b"\n"


def cells(random, stored):
    """A tab, a quote or a line end that is not where others have it."""
    return stored.replace(
        *random.choice(
            ((b"\t", b""), (b"\t", b"\t\t"), (b"\n", b"\r"), (b" ", b'"'), (b" ", b"\0"))
        )
    )


TEXT = (truncated, flipped, inserted, emptied, line_of_any_length, cells)


def damage(kinds, seed: int, stored: bytes) -> tuple[str, bytes]:
    """The name of a damage that is drawn from `kinds` by `seed`, and the bytes."""
    random = Random(seed)
    chosen = random.choice(kinds)
    try:
        return chosen.__name__, chosen(random, stored)
    except Exception:  # what cannot be written, half a surrogate pair say, is not tried
        return "flipped", flipped(random, stored)
