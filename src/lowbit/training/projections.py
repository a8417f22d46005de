"""When weights are projected onto their codes: a plan (bcq.py) as a callback of Trainer.

The log has, for each projection, ‖ŵ − w‖ / ‖w‖ of each weight w, which becomes ŵ.

Whatever is scored or saved is the quantized model: a projection, or what amounts to one, comes
before each score and each checkpoint.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowbit.qat.codes import Mode
from lowbit.qat.projection import CodedWeight
from lowbit.training.bcq import BcqPlan


class Projections(TrainerCallback):
    """score_before: called before a projection at which the model is scored, if the plan asks.
    naming_step: a context in which an InputError gets the number of the step."""

    def __init__(
        self,
        weights: Sequence[CodedWeight],
        plan: BcqPlan,
        score_before: Callable[[], None],
        naming_step: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.weights, self.plan, self.score_before = weights, plan, score_before
        self.naming_step = naming_step
        self.begun: set[str] = set()
        self.synced = self.projected = 0  # the last step after which they were

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What a checkpoint holds was in order when it was saved.
        self.synced = self.projected = state.global_step
        self._begin(state, resuming=state.global_step > 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = state.global_step >= state.max_steps
        if self.plan.every:
            due = last or state.global_step % self.plan.every == 0
        else:
            # What is scored or saved at the end of an epoch, but as a step, is projected before: a
            # training that goes on from there begins with the next epoch.
            ends = last or float(state.epoch or 0.5).is_integer()
            due = ends and (control.should_evaluate or control.should_save)
        with self.naming_step():
            self._act(due, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.naming_step():
            self._act(self.plan.every == 0, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The float weights become what the codes of the model that was kept stand for."""
        for weight in self.weights:
            weight.settle()

    def _act(self, due: bool, state: TrainerState, control: TrainerControl) -> None:
        looked_at = control.should_evaluate or control.should_save
        last = self.projected if due else self.synced
        acts = (due or looked_at) and state.global_step != last
        # Straight codes are what is computed with already, unless a projection is due.
        moves = (due or not self.plan.straight) and any(
            weight.codes.mode is not Mode.FROZEN for weight in self.weights
        )
        if acts and moves and self.plan.score_before and control.should_evaluate:
            self.score_before()
        self._begin(state)
        if not acts:
            return
        changes = {}
        for weight in self.weights:
            if weight.part in self.begun and weight.codes.mode is not Mode.FROZEN:
                changes[weight.name] = (weight.project if due else weight.sync)()
        if changes and moves:  # kept with the checkpoint, and not printed as the log is
            state.log_history.append({"step": state.global_step, "projection": changes})
        self.synced = state.global_step
        if due:
            self.projected = state.global_step

    def _begin(self, state: TrainerState, resuming: bool = False) -> None:
        """Let parts whose time has come begin, and codes freeze."""
        step, total = state.global_step, state.max_steps
        begun = {w.part for w in self.weights if self.plan.begins(w.part, total) <= step}
        freezes = step >= self.plan.freezes(total)
        mode = Mode.FROZEN if freezes else Mode.STRAIGHT if self.plan.straight else Mode.FREE
        for weight in self.weights:
            if weight.part not in begun:
                continue
            if resuming:
                weight.codes.mode = mode
            else:
                weight.enter(mode)
        if begun != self.begun and not resuming:
            # The best model so far was another one, with fewer weights quantized.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        self.begun = begun
