"""RequantizedLinear: a QuantLinear with static int8 activations and int8 outputs.

    y = s · (clamp(round((x̂ · Ŵᵀ + bias) / s) + z) − z)      (Jacob et al. 2018, section 2.4)

Outputs are rounded to codes and decoded again, so that any module can follow. The results equal
those of hardware that passes int8 between layers; here this saves no time.
"""

import torch
from torch import Tensor

from lowbit.formats import StaticScale, fake_quantize
from lowbit.nn.linear import QuantLinear


class RequantizedLinear(QuantLinear):
    """Also saves `output_scale` and `output_zero_point`. No nonlinearity is fused into it."""

    output_scale: Tensor
    output_zero_point: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        _, output = self.static_scales()
        rounded, _ = fake_quantize(y, output)
        return rounded

    def own_stored(self) -> dict[str, torch.dtype]:
        output = {"output_scale": torch.float32, "output_zero_point": torch.int8}
        return super().own_stored() | output

    def set_static(self, *scales: StaticScale) -> None:
        """Set the scale of the activations, then the scale of the outputs."""
        activations, outputs = scales
        super().set_static(activations)
        self.output_scale, self.output_zero_point = self.static_tensors(outputs)

    def describe(self) -> str:
        return super().describe() + ", int8 outputs"
