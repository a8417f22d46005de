"""Which tensors of a checkpoint hold the rows of which expert.

Checkpoints hold the matrices of experts one by one; transformers makes one parameter [experts, out,
in] of them, in which those of an expert may lie one under the other, such as gates and ups. What
lies where is told by transformers' own conversions.
"""

import re
from collections.abc import Mapping

from transformers.core_model_loading import Concatenate, MergeModulelist

from lowbit.conversion.streamed_load import InModel


def rows_of_experts(places: Mapping[str, InModel]) -> dict[str, list[list[str]]]:
    """For each parameter of experts that is put together of matrices as they are, by its name in
    the model: for each expert the tensors of the checkpoint that are its rows, from the first on.

    places: `names_in_model` of the checkpoint's tensors. Left out is what transformers makes
    otherwise (transposed, with rows in turns), and what has not as many matrices of each kind.
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
    """Those in a name: of the layer, of the expert, and what all have alike."""
    return [int(number) for number in re.findall(r"\d+", stored)]
