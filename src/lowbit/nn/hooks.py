"""Forward hooks of users, which a model that is not run module by module would leave out."""

from torch import nn
from transformers.utils import output_capturing


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks, except those that transformers leaves after a model has
    returned its hidden states: of `utils.output_capturing` in 5.23, 5.24."""
    if not (module._forward_pre_hooks or module._forward_hooks):
        return False
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(getattr(hook, "__module__", None) != output_capturing.__name__ for hook in hooks)
