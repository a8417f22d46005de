"""Translation without the fast step gives the same text, and says that it is slower."""

import warnings

import pytest

import lowbit
from lowbit.decoding.translator import Translator
from lowbit.fallbacks import SlowPathWarning
from lowbit.training.translation import teach
from tests.training import reversing

SOURCES = ["ba bo da", "la na", "ka lo"]


@pytest.fixture
def lesson(tmp_path):
    return teach(reversing.material(reversing.write(tmp_path, train=20, valid=12)))


def test_a_model_that_the_fast_step_refuses_is_translated_with_and_told_of_once(lesson):
    model = lesson.model.eval()
    model.set_attn_implementation("sdpa")
    translator = Translator(model, lesson.tokenizer, max_new_tokens=5, batch_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        fast = translator(SOURCES, progress=False)
    assert not lowbit.explain(model).slow_paths
    model.set_attn_implementation("eager")
    with pytest.warns(SlowPathWarning, match=r"model\.generate: .*attention is eager") as seen:
        slow = translator(SOURCES, progress=False)
    assert slow == fast
    assert len([w for w in seen if w.category is SlowPathWarning]) == 1
    assert "attention is eager" in str(lowbit.explain(model))
