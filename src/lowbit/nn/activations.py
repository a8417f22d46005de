"""What a quantized linear layer does to its activations."""

from lowbit.nn.linear import QuantLinear
from lowbit.nn.requantized import RequantizedLinear

# name -> (module, what its product's kernel takes)
ACTIVATIONS: dict[str, tuple[type[QuantLinear], str]] = {
    "float": (QuantLinear, "float"),
    "dynamic": (QuantLinear, "dynamic"),
    "static": (QuantLinear, "static"),
    "requantized": (RequantizedLinear, "static"),
}
# Those whose scales are found in data.
STATIC = tuple(name for name, (_, taken) in ACTIVATIONS.items() if taken == "static")
