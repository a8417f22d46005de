"""The kinds of graph values that lowering knows."""

from dataclasses import dataclass

from torch import fx


class UnservedError(Exception):
    """A step that no operation computes, in one sentence."""


@dataclass(frozen=True)
class Matrix:
    number: int
    columns: int


@dataclass(frozen=True)
class Scaled:
    """A matrix times a number, as queries are before their heads are cut."""

    matrix: Matrix
    by: float


@dataclass(frozen=True)
class Heads:
    """Columns of a matrix from `first` on, times a number, as [batch, length, heads, size], or
    [batch, heads, length, size] if `turned`."""

    matrix: Matrix
    heads: int
    size: int
    turned: bool
    by: float = 1.0
    first: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether the heads are the whole matrix, unscaled and not transposed."""
        wide = self.heads * self.size == self.matrix.columns
        return wide and not self.turned and self.by == 1


@dataclass(frozen=True)
class Columns:
    """Some columns of a matrix, with a nonlinearity that is applied before they are read."""

    matrix: Matrix
    first: int
    columns: int
    nonlinearity: str = "identity"


@dataclass(frozen=True)
class Parts:
    """A tuple of values: a matrix that was split."""

    values: "tuple[Heads | Columns, ...]"


@dataclass(frozen=True)
class Rotation:
    """An intermediate step of a rotary embedding of heads. half: which half of the numbers, None
    for both. swapped: the negative second half comes before the first. by: the factor."""

    heads: Heads
    half: int | None = None
    negative: bool = False
    swapped: bool = False
    by: fx.Node | None = None


@dataclass(frozen=True)
class Sum:
    """a + b; its consumers decide which operation computes it."""

    a: Matrix
    b: Matrix


@dataclass(frozen=True)
class Logistic:
    """1 / (1 + exp(-slope x))."""

    matrix: Matrix
    slope: float


@dataclass(frozen=True)
class Squares:
    """The square of each number."""

    of: "Matrix | Sum"


@dataclass(frozen=True)
class MeanSquare:
    """The mean of a row's squares, and epsilon; `inverse_root` of it."""

    of: "Matrix | Sum"
    epsilon: float = 0.0
    inverse_root: bool = False


@dataclass(frozen=True)
class Unweighted:
    """Rows by their root mean square, before their weight."""

    of: "Matrix | Sum"
    epsilon: float


@dataclass(frozen=True)
class Keys:
    """Transposed heads [..., size, length], the right operand of query · key."""

    heads: Heads


@dataclass(frozen=True)
class Scores:
    """scale query · key + masks, of an attention without fused operator; `weights` after
    softmax."""

    query: Heads
    key: Heads
    scale: float = 1.0
    masks: tuple[fx.Node, ...] = ()
    weights: bool = False


Value = (
    Matrix
    | Scaled
    | Heads
    | Columns
    | Parts
    | Rotation
    | Sum
    | Logistic
    | Squares
    | MeanSquare
    | Unweighted
    | Keys
    | Scores
)
