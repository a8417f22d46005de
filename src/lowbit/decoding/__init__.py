"""Text from a model, token by token, with little of Python's time in between.

recording.py watches a step of the model, program.py makes straight-line code of it, cache.py holds
keys and values, and generate.py puts it under transformers' own searches.
"""

from lowbit.decoding.generate import generate

__all__ = ["generate"]
