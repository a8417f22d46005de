"""A decoder step for one token. The model itself computes the first two steps, which are recorded.
Later steps run the recording, or the model itself if it cannot be recorded."""

from jaxtyping import Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.decoding.first import First, first
from lowbit.decoding.program import Program, program
from lowbit.decoding.recording import Recorded, Recording, recorded
from lowbit.decoding.state import State
from lowbit.errors import UsageError
from lowbit.fallbacks import note
from lowbit.nn.plain_attributes import PlainAttributes


class Step:
    """A step for one model, number of rows and kind of state."""

    def __init__(self) -> None:
        self.earlier: Recorded | None = None
        self.program: Program | None = None
        self.first: First | None = None  # how it reads a first token too
        self.is_first_refused = False
        self.is_plain = False  # the model itself computes it, because it cannot be recorded
        self.attributes: PlainAttributes | None = None  # of the model, since it is settled

    @property
    def is_new(self) -> bool:
        return self.earlier is None and not self.is_settled

    @property
    def is_settled(self) -> bool:
        """Whether the way to compute the next tokens is decided."""
        return self.program is not None or self.is_plain

    def try_first(
        self,
        model: PreTrainedModel,
        ids: Integer[Tensor, "batch 1"],
        before: State,
        after: State,
        logits: Float[Tensor, "batch 1 vocabulary"],
    ) -> None:
        """Find whether this step can read the first token too, which the model has just read."""
        if self.program is None or self.is_first_refused:
            return
        try:
            self.first = first(model, self.program, ids, before, after, logits)
        except Exception:  # the model's own code may refuse a source of another length
            self.first, self.is_first_refused = None, True

    def __call__(
        self, model: PreTrainedModel, ids: Integer[Tensor, "batch 1"], state: State
    ) -> Float[Tensor, "batch 1 vocabulary"]:
        """The logits of the token after `ids`. The next call may overwrite them."""
        inputs = state.inputs(ids)
        if self.program is not None:
            return self.program(state.layers, state.layers[0].length, **inputs)
        if self.is_plain:
            return _logits(model, ids, state)
        with Recording() as recording:
            logits = self._read(model, ids, state)
        try:
            later = recorded(recording.calls, inputs, logits)
            if self.earlier is None:
                self.earlier = later
            else:
                self.program = program(self.earlier, later, state.layers)
                self.earlier = None
        except UsageError as why:
            self.earlier, self.is_plain = None, True
            note(model, f"lowbit.generate computes tokens as model.generate does: {why}.")
        return logits

    def _read(self, model: PreTrainedModel, ids: Tensor, state: State) -> Tensor:
        """The logits, by the model itself. Raises UsageError if its code needs another mask, for
        example to compute positions from padding."""
        try:
            return _logits(model, ids, state)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            if state.mask is None or self.earlier is not None:
                raise
            raise UsageError(
                "lowbit.generate does not serve this: the model does not take a mask"
                f" [batch, 1, 1, tokens] ({error}); model.generate does"
            ) from error


def _logits(model: PreTrainedModel, ids: Tensor, state: State) -> Tensor:
    logits: Tensor = model(**state.arguments(ids)).logits
    return logits
