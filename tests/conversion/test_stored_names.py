"""Names in checkpoints: a tensor that is renamed when it is saved comes back when it is loaded."""

import pytest
import torch
from transformers import RfDetrForInstanceSegmentation, UltrabertForQuestionAnswering

import lowbit
from tests.sweep.configs import tiny_config


@pytest.mark.parametrize(
    ("model_class", "model_type"),
    [
        # Its checkpoints have other names for almost everything, floats and what is quantized.
        (RfDetrForInstanceSegmentation, "rf_detr"),
        # The loader adds the base model's prefix to the name of its head, and takes it away again.
        (UltrabertForQuestionAnswering, "ultrabert"),
    ],
)
def test_a_class_whose_checkpoints_have_other_names_is_saved_and_loaded(
    model_class, model_type, tmp_path
):
    torch.manual_seed(0)
    model = model_class(tiny_config(model_class, model_type, padded=False)).eval()
    lowbit.quantize(model, "int8-all", progress=False)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    wanted = model.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name
