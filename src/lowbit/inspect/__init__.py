"""What a model or a checkpoint holds, and how it computes here."""

from lowbit.inspect.explain import Explanation, explain

__all__ = ["Explanation", "explain"]
