"""The kinds of activations of a quantized linear layer."""

from lowbit.nn.linear import QuantLinear
from lowbit.nn.requantized import RequantizedLinear

# name -> (module, kind of activations that its kernel takes)
ACTIVATIONS: dict[str, tuple[type[QuantLinear], str]] = {
    "float": (QuantLinear, "float"),
    "dynamic": (QuantLinear, "dynamic"),
    "static": (QuantLinear, "static"),
    "requantized": (RequantizedLinear, "static"),
}
# Kinds with scales from calibration data.
STATIC = tuple(name for name, (_, taken) in ACTIVATIONS.items() if taken == "static")
