"""When weights are projected, begin and freeze: the plan against a hand-made list of steps."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

import lowbit
from lowbit import UsageError
from lowbit.conversion.recipe import PRESETS
from lowbit.formats import CHANNEL, group
from lowbit.qat.codes import Mode
from lowbit.qat.projection import PARTS
from lowbit.schemes import Binary, Clustered, scheme_to_dict
from lowbit.training.architecture import Architecture, new_model
from lowbit.training.bcq import PLANS, BcqPlan, find_plan
from lowbit.training.projections import Projections

RECIPE = PRESETS["bcq3-all"]


class Recorded:
    """A weight that writes down what is done to it."""

    def __init__(self, part, log, clock):
        self.name = self.part = part
        self.log, self.clock = log, clock
        self.codes = SimpleNamespace(mode=Mode.FREE)

    def note(self, what):
        self.log.append((self.clock.global_step, self.part, what))

    def project(self):
        self.note("project")

    def sync(self):
        self.note("sync")

    def settle(self):
        self.note("settle")

    def enter(self, mode):
        if mode is not self.codes.mode:
            self.codes.mode = mode
            self.note(mode.value)


def run(plan, steps, epoch, scored=(), saved=(), start=0, scored_by_epoch=False):
    """What happens in a training of so many steps, of so many in an epoch."""
    log, state = [], TrainerState(max_steps=steps, global_step=start)
    weights = [Recorded(part, log, state) for part in PARTS]
    callback = Projections(
        weights,
        plan,
        lambda: log.append((state.global_step, "", "score before")),
        nullcontext,
    )
    callback.on_train_begin(None, state, TrainerControl())
    for step in range(start + 1, steps + 1):
        state.global_step, state.epoch = step, step / epoch
        flags = TrainerControl(should_evaluate=step in scored, should_save=step in saved)
        callback.on_step_end(None, state, flags)
        if step % epoch == 0 or step == steps:
            flags = TrainerControl(should_evaluate=scored_by_epoch)
            callback.on_epoch_end(None, state, flags)
    callback.on_train_end(None, state, TrainerControl())
    return log, state


def steps_of(log, what, part="embedding"):
    return [step for step, where, happened in log if happened == what and where == part]


def test_free_weights_are_projected_every_so_many_steps_and_at_the_end():
    log, _ = run(BcqPlan(RECIPE, every=4, straight=False, frozen=0), steps=10, epoch=5)
    assert steps_of(log, "project") == [4, 8, 10]
    assert steps_of(log, "settle") == [10]


def test_without_a_number_an_epochs_end_is_when():
    log, _ = run(BcqPlan(RECIPE, every=0, straight=False, frozen=0), steps=12, epoch=5)
    assert steps_of(log, "project") == [5, 10, 12]


def test_nothing_is_scored_or_saved_that_is_not_the_codes():
    plan = BcqPlan(RECIPE, every=4, straight=False, frozen=0)
    log, _ = run(plan, steps=8, epoch=8, scored={3, 8}, saved={6})
    assert steps_of(log, "sync") == [3, 6] and steps_of(log, "project") == [4, 8]


def test_an_epochs_end_that_is_scored_or_saved_as_a_step_is_projected_before():
    """Else a training that goes on from its checkpoint would begin the next epoch without it."""
    plan = BcqPlan(RECIPE, every=0, frozen=0)
    log, state = run(plan, steps=12, epoch=5, scored={5, 8}, saved={10, 12})
    assert steps_of(log, "sync") == [8] and steps_of(log, "project") == [5, 10, 12]
    assert [line["step"] for line in state.log_history if "projection" in line] == [5, 10, 12]


def test_the_control_arm_is_scored_before_and_after_each_projection():
    plan = PLANS["bcq-reference"]
    log, _ = run(plan, steps=10, epoch=5, scored_by_epoch=True)
    assert steps_of(log, "project") == [5, 10]
    assert steps_of(log, "score before", "") == [5, 10]
    assert log.index((5, "", "score before")) < log.index((5, "embedding", "project"))
    assert {rule.scheme.solver for rule in plan.recipe.rules} == {"greedy"}
    assert {rule.scheme.granularity for rule in plan.recipe.rules} == {CHANNEL}


def test_straight_codes_are_scored_before_projections_alone():
    """Elsewhere, and where they are frozen, the same model would be scored twice."""
    plan = BcqPlan(RECIPE, every=4, frozen=0.25, score_before=True)
    log, state = run(plan, steps=16, epoch=16, scored={2, 4, 8, 14, 16})
    assert steps_of(log, "score before", "") == [4, 8]
    assert [line["step"] for line in state.log_history if "projection" in line] == [4, 8]


def test_parts_begin_in_turn_and_freeze_together():
    plan = BcqPlan(RECIPE, every=5, phases=True, frozen=0.25)
    log, state = run(plan, steps=40, epoch=40)
    assert [steps_of(log, "straight", part) for part in PARTS] == [[0], [10], [20]]
    assert [steps_of(log, "frozen", part) for part in PARTS] == [[30], [30], [30]]
    assert steps_of(log, "project", "encoder") == [20, 25]


def test_what_was_best_before_a_part_began_is_no_longer_so():
    plan = BcqPlan(RECIPE, every=5, phases=True, frozen=0)
    state = TrainerState(max_steps=30, global_step=10, best_metric=50.0)
    state.best_model_checkpoint, state.best_global_step = "checkpoint-5", 5
    weights = [Recorded(part, [], state) for part in PARTS]
    callback = Projections(weights, plan, lambda: None, nullcontext)
    callback.begun = {"embedding"}
    callback.on_step_end(None, state, TrainerControl())
    assert state.best_metric is state.best_model_checkpoint is state.best_global_step is None


def test_a_training_that_goes_on_changes_nothing_at_its_start():
    plan = BcqPlan(RECIPE, every=4, frozen=0.5)
    log, _ = run(plan, steps=16, epoch=16, start=10)
    assert log == [(16, part, "settle") for part in PARTS]  # frozen since step 8


def test_options_take_the_place_of_a_plans_own():
    plan = find_plan("2", {"every": 7, "solver": "greedy", "granularity": "group:32"})
    assert plan.every == 7 and plan.straight
    schemes = [rule.scheme for rule in plan.recipe.rules]
    assert {(s.bits, s.solver, s.granularity) for s in schemes} == {(2, "greedy", group(32))}
    assert find_plan("bcq3", {"phases": True}).recipe.rules[0].scheme is None
    assert find_plan("bcq-mixed", {}) == PLANS["bcq-mixed"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("5", {}, "plan '5' is unknown: use 1, 2"),
        ("int8", {}, "rule '@linear' of recipe int8 is not of binary codes"),
        ("3", {"every": -1}, "steps between projections must be at least 0, not -1"),
        ("3", {"frozen": 1.0}, "a share of 1.0 frozen steps"),
        ("3", {"solver": "best"}, "solver 'best' is unknown"),
    ],
)
def test_plans_that_cannot_be_are_wrong_use(name, options, message):
    with pytest.raises(UsageError, match=message):
        find_plan(name, options)


def test_the_clustered_plan_is_the_mixed_one_but_for_the_embedding():
    mixed, plan = PLANS["bcq-mixed"], PLANS["bcq-clustered"]
    table, *others = plan.recipe.rules
    assert (table.match, plan.recipe.name) == ("@embedding", "bcq-clustered")
    assert table.scheme == Clustered(Binary(4, CHANNEL, offset=False))
    assert others == [rule for rule in mixed.recipe.rules if rule.match != "@embedding"]
    changed = find_plan("bcq-clustered", {"granularity": "group:32", "nested": True, "every": 7})
    assert changed.every == 7
    for rule in changed.recipe.rules:
        own = scheme_to_dict(rule.scheme)
        assert own["granularity"] == "group:32" and own["nested"], rule.match


class Tokenizer:
    model_max_length, pad_token_id, eos_token_id = 48, 0, 1

    def __len__(self):
        return 6000


@pytest.mark.parametrize(
    ("plan", "whole", "table"), [("bcq-mixed", 2.53, 3.25), ("bcq-clustered", 2.42, 2.71)]
)
def test_bits_per_weight_are_those_that_the_documentation_gives(plan, whole, table):
    """6,000 words and a width of 192; how codes are found does not change their size."""
    model = new_model(Architecture("marian", 4, 192, 768), Tokenizer())
    recipe = find_plan(plan, {"solver": "greedy"}).recipe
    size = lowbit.quantize(model, recipe, progress=False).after
    (shared,) = [module for module in size.modules if module.name == "model.shared"]
    assert round(size.parameters / 1e6, 1) == 5.3
    assert (round(size.bits_per_weight, 2), round(shared.bits_per_weight, 2)) == (whole, table)
