import pytest
import torch
from jaxtyping import TypeCheckError

from lowbit.formats.packing import pack


def test_a_dtype_that_an_annotation_does_not_name_is_refused():
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    assert pack(codes, 4).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        pack(codes.float(), 4)
