"""LoRA adapters of PEFT on a quantized base.

Importing this lets PEFT adapt the layers that lowbit quantized: `peft.get_peft_model`,
`PeftModel.from_pretrained`, `load_adapter` and transformers' `add_adapter` then work as on a float
model, and so does whatever calls them. PEFT keeps a table of methods and the models that inject
them; ours, which is PEFT's for all layers but quantized ones, takes the place of LoRA there.
Adapters are saved by PEFT, in its format, and load on the float base too.
"""

from lowbit.extras import needed

needed("peft", "peft", "peft")

from lowbit.peft.load import check_adapter, load  # noqa: E402
from lowbit.peft.tuner import QuantizedLoraModel, register  # noqa: E402

register()

__all__ = ["QuantizedLoraModel", "check_adapter", "load", "register"]
