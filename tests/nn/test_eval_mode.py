import pytest
import torch
from transformers import RobertaConfig, RobertaForCausalLM

import lowbit
from lowbit.nn.eval_mode import positions
from tests.models import BERT, make


def roberta():
    torch.manual_seed(0)
    return RobertaForCausalLM(RobertaConfig(**BERT, is_decoder=True, pad_token_id=1)).eval()


def reads(model, length):
    with torch.no_grad():
        return model(torch.full((1, length), 7)).logits.shape[1] == length


@pytest.mark.parametrize("recipe", [None, "int8-all"])
def test_positions_that_start_after_the_paddings_are_fewer(recipe):
    model = roberta()
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    most = positions(model)
    assert most == 62 and reads(model, most)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds|out of range"):
        reads(model, most + 1)


def test_other_models_read_as_far_as_they_declare():
    assert [positions(make(name)) for name in ("bert", "gpt2", "bart", "t5")] == [64, 64, 64, None]
