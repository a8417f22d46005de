"""Find the checkpoint tensors with the rows of each expert.

Checkpoints store the matrices of experts separately. transformers joins them to one parameter
[experts, out, in], which may concatenate several matrices of an expert, such as gate and up.
transformers' own conversions give the order.
"""

import re
from collections.abc import Mapping

from transformers.core_model_loading import Concatenate, MergeModulelist

from lowbit.conversion.streamed_load import InModel


def rows_of_experts(places: Mapping[str, InModel]) -> dict[str, list[list[str]]]:
    """For each parameter of experts that is a plain concatenation of matrices, by its name in the
    model: the checkpoint tensors of each expert, in the order of their rows.

    places: `names_in_model` of the checkpoint's tensors. The result excludes parameters that
    transformers joins in another way (transposed, interleaved), and those with missing matrices.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for stored, place in places.items():
        converter = place.converter
        if converter is None or place.pattern is None:
            continue
        first, *others = converter.operations
        joins = len(others) == 1 and type(others[0]) is Concatenate and others[0].dim == 1
        if type(first) is MergeModulelist and first.dim == 0 and (joins or not others):
            kinds = found.setdefault(place.name, {p: [] for p in converter.source_patterns})
            kinds[place.pattern].append(stored)
    ordered = {
        name: [sorted(each, key=_numbers) for each in kinds.values()]
        for name, kinds in found.items()
    }
    return {
        name: [list(rows) for rows in zip(*kinds, strict=True)]
        for name, kinds in ordered.items()
        if len({len(each) for each in kinds}) == 1
    }


def _numbers(stored: str) -> list[int]:
    """The numbers in a name (layer, expert), and the rest of the name."""
    return [int(number) for number in re.findall(r"\d+", stored)]
