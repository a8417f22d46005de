"""Runs cases in a process that may hang, die, or take all memory: each case is told before it runs.

A case is a number. From it follow the file, the damage and the verb, so that it can be run again.
"""

import ctypes
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch

import lowbit
from tests.campaign import documents
from tests.campaign.specimens import TARGETS, Answer, CommandError, Target, Verb, copy, link

SECONDS = 20  # that one case may compute; it may wait for ten times as long
# Memory above what the imports take, beside twice what the files hold: they and the model.
MEBIBYTES = 300
GIBIBYTES = 6  # of address space beyond what the process has: it protects the machine
SPECIAL = ("fifo", "zeros", "folder", "loop", "dangling", "absent")

GOOD = ("a sentence", "equal", "detected", "says something else")
BAD = (
    "traceback",
    "foreign error",
    "silent",
    "hang",
    "died",
    "memory",
    "outside",
    "code",
    "terminal",
)
# What a terminal would obey, and halves of characters.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Outcome:
    case: int
    target: str
    damage: str
    verb: str
    found: str
    told: str
    mebibytes: float
    seconds: float


@dataclass(frozen=True)
class Case:
    number: int
    target: Target
    verb: Verb
    seed: int
    special: str | None


def case(number: int, quick: bool = False) -> Case:
    """The case of that number; `quick`: one of the verbs that take milliseconds, mostly."""
    random = Random(number)
    served = {t: _quick(t) if quick else t.verbs for t in TARGETS}
    targets = [t for t in TARGETS if served[t]]
    target = random.choices(targets, [t.weight for t in targets])[0]
    verbs = served[target]
    special = random.choice(SPECIAL) if random.random() < 0.06 else None
    return Case(number, target, random.choice(verbs), random.getrandbits(48), special)


def _quick(target: Target) -> Sequence[Verb]:
    verbs = [v for v in target.verbs if not v.heavy]
    return [v for v in verbs if not v.slow] * 3 + verbs


def damage(case: Case, file: Path) -> str:
    """Put a damaged file in the place of the one that is there; what the damage is called."""
    stored = file.read_bytes()
    file.unlink()
    match case.special:
        case "fifo":
            os.mkfifo(file)
        case "zeros":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
        case "loop":
            file.symlink_to(file)
        case "dangling":
            file.symlink_to(file.with_name("nowhere"))
        case "absent":
            pass
        case _:
            name, damaged = documents.damage(case.target.kinds, case.seed, stored)
            file.write_bytes(damaged)
            return name
    return case.special


def campaign(specimens: Path, numbers: Sequence[int], quick: bool = False) -> Iterator[Outcome]:
    """The outcome of each case, in order."""
    left = list(numbers)
    while left:
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            ours.close()
            _work(specimens, left, quick, theirs)
        theirs.close()
        try:
            before = len(left)
            for found in _told(ours, child, left, quick):
                left.remove(found.case)
                yield found
            if len(left) == before:
                raise RuntimeError("no case could be begun")
        finally:
            ours.close()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _told(
    pipe: socket.socket, child: int, numbers: Sequence[int], quick: bool
) -> Iterator[Outcome]:
    """What the child tells, until it ends; a case during which it ended, or was silent, is one."""
    buffer, running = b"", None
    since = time.monotonic(), _computed(child)
    while True:
        ready, _, _ = select.select([pipe], [], [], SECONDS)
        if not ready and not _late(child, since):
            continue
        read = pipe.recv(1 << 16) if ready else b""
        if not read:
            if running is not None:
                one = case(running, quick)
                what = "died" if ready else "hang"
                yield Outcome(
                    running,
                    one.target.name,
                    str(one.special),
                    one.verb.name,
                    what,
                    "",
                    0.0,
                    SECONDS,
                )
            return
        buffer += read
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            told = json.loads(line)
            if isinstance(told, str):
                raise RuntimeError(told)
            since = time.monotonic(), _computed(child)
            if isinstance(told, int):
                running = told
            else:
                running = None
                yield Outcome(**told)


def _late(child: int, since: tuple[float, float]) -> bool:
    """Whether it has computed for too long, or waited; not if the machine is just busy."""
    waited = time.monotonic() - since[0]
    return waited > 10 * SECONDS or _computed(child) - since[1] >= SECONDS


def _computed(child: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(specimens: Path, numbers: Sequence[int], quick: bool, pipe: socket.socket) -> None:
    """The child. It never returns."""
    try:
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # A child that runs wild ends with its parent.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        arena = Path(tempfile.mkdtemp(prefix="campaign-"))
        os.chdir(arena)
        tempfile.tempdir = str(arena / "temporary")
        (arena / "temporary").mkdir()
        _in_this_process()
        events = _watched(arena)
        right: dict[tuple[str, str], Answer] = {}
        here = _kibibytes("VmSize") << 10
        resource.setrlimit(resource.RLIMIT_AS, (here + (GIBIBYTES << 30),) * 2)
        for number in numbers:
            one = case(number, quick)
            key = (one.target.folder, one.verb.name)
            if key not in right:
                right[key] = _answer(one, specimens, arena)
            pipe.sendall(json.dumps(number).encode() + b"\n")
            told = json.dumps(asdict(_run(one, specimens, arena, right[key], events)))
            pipe.sendall(told.encode() + b"\n")
        shutil.rmtree(arena, ignore_errors=True)
        os._exit(0)
    except BaseException:
        pipe.sendall(json.dumps(traceback.format_exc()).encode() + b"\n")
        os._exit(1)


def _in_this_process() -> None:
    """Commands run here: no signal handlers of theirs, and no process that measures a peak."""
    import lowbit.evaluation.record

    signal.signal = lambda number, handler: None
    lowbit.evaluation.record.peak_bytes = lambda folder: None


def _answer(one: Case, specimens: Path, arena: Path) -> Answer:
    """What the verb says of undamaged files."""
    place, scratch = arena / "right", arena / "scratch"
    copy(specimens, place)
    scratch.mkdir()
    try:
        return one.verb.run(place / one.target.folder, scratch)
    finally:
        shutil.rmtree(place)
        shutil.rmtree(scratch)


def _run(
    one: Case, specimens: Path, arena: Path, right: Answer, events: list[tuple[str, str]]
) -> Outcome:
    place, scratch = arena / "place", arena / "scratch"
    for folder in specimens.iterdir():
        if not (place / folder.name).exists():
            shutil.copytree(folder, place / folder.name, copy_function=link)
    scratch.mkdir()
    name = damage(one, place / one.target.folder / one.target.file)
    size = sum(f.stat().st_size for f in (place / one.target.folder).iterdir() if f.is_file())
    before = _mark()
    events.clear()
    start = time.perf_counter()
    try:
        found, told = _outcome(one, place / one.target.folder, scratch, right)
    finally:
        seconds = time.perf_counter() - start
    grown = max(0, _kibibytes("VmHWM") - before) / 1024
    if found not in BAD and grown > MEBIBYTES + 2 * size / 2**20:
        found, told = "memory", f"{grown:.0f} MiB"
    if events:
        found, told = events[0]
    if (arena / "CANARY").exists() or (place / one.target.folder / "CANARY").exists():
        found, told = "code", "the canary sings"
    (arena / "CANARY").unlink(missing_ok=True)
    # The others stay for the next case, as nothing writes to them.
    shutil.rmtree(place / one.target.folder)
    shutil.rmtree(scratch)
    return Outcome(
        one.number, one.target.name, name, one.verb.name, found, told, round(grown, 1), seconds
    )


def _outcome(one: Case, folder: Path, scratch: Path, right: Answer) -> tuple[str, str]:
    try:
        answer = one.verb.run(folder, scratch)
    except lowbit.LowbitError as error:
        return _judged(str(error), str(error))
    except CommandError as failed:
        lines = [line for line in failed.printed.splitlines() if line.strip()]
        # The last resort of the command line is a sentence too, but not one about a file.
        unexpected = any(told in failed.printed for told in ("Traceback", "did not expect"))
        if unexpected or not lines or (failed.code == 1 and not lines[-1].startswith("error: ")):
            return "traceback", failed.printed[-500:]
        return _judged(failed.printed, lines[-1])
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {str(error)[:200]} ({frame.filename}:{frame.lineno})"
        if one.verb.name == "from_pretrained":
            return "a sentence", told  # transformers' own function, and its own words
        api = one.verb.name in (
            "load_model",
            "load_tokenizer",
            "Recipe",
            "Study",
            "Journal",
            "load",
        )
        return ("foreign error" if api else "traceback"), told
    if _same(answer, right):
        return "equal", ""
    if not one.target.hashed:
        return "says something else", ""
    verify = getattr(lowbit, "verify", None)
    if verify is not None and one.verb.name != "Journal":
        try:
            verify(folder)
        except lowbit.LowbitError as error:
            return "detected", str(error)
    return "silent", ""


def _judged(printed: str, sentence: str) -> tuple[str, str]:
    if OBEYED.search(printed):
        return "terminal", repr(sentence)[:300]
    return "a sentence", sentence[:300]


def _same(answer: Answer, right: Answer) -> bool:
    return len(answer) == len(right) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        for a, b in zip(answer, right, strict=True)
    )


def _watched(arena: Path) -> list[tuple[str, str]]:
    """Files that are written outside the arena, and code that is run, as they happen."""
    events: list[tuple[str, str]] = []
    root = str(arena)

    def outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not real.startswith((root, "/dev/null", "/proc/self"))

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else 0
            if writes and outside(path):
                events.append(("outside", f"open {path!r}"))
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"):
            if any(outside(a) for a in arguments if isinstance(a, str | bytes)):
                events.append(("outside", f"{event} {arguments!r}"[:200]))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            events.append(("outside", f"{event} {arguments!r}"[:200]))
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            events.append(("code", f"{event} {arguments!r}"[:200]))
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith(root):
            events.append(("code", arguments[0].co_filename))
        elif event == "pickle.find_class":
            events.append(("code", f"pickle {arguments!r}"[:200]))

    sys.addaudithook(hook)
    return events


def _mark() -> int:
    """Kibibytes that are resident now; the high-water mark is set back to them."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _kibibytes("VmHWM")
    return _kibibytes("VmRSS")


def _kibibytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1])


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by file and outcome."""
    columns = [c for c in (*GOOD, *BAD) if c in BAD or any(o.found == c for o in outcomes)]
    width = max(len(t.name) for t in TARGETS)
    lines = [" ".join([" " * width, *columns, "all"])]
    rows = [(t.name, [o for o in outcomes if o.target == t.name]) for t in TARGETS]
    for name, found in [*((n, f) for n, f in rows if f), ("all", list(outcomes))]:
        counts = Counter(o.found for o in found)
        cells = (str(counts[c]).rjust(len(c)) for c in columns)
        lines.append(" ".join([name.ljust(width), *cells, str(len(found)).rjust(3)]))
    return "\n".join(lines)


def wrong(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each case that ended as none may."""
    return [
        f"{o.case}: {o.target}, {o.damage}, {o.verb}: {o.found}. {o.told}"
        for o in outcomes
        if o.found in BAD
    ]
