"""Generate text token by token with little Python overhead.

recording.py records a step of the model, program.py compiles it to straight-line code, cache.py has
the KV cache, and generate.py runs transformers' own searches with these steps.
"""

from lowbit.decoding.generate import generate

__all__ = ["generate"]
