"""Register lowbit's attention and experts with transformers. `import lowbit` imports this module
after `transformers.modeling_utils`."""

from lowbit.kernels.attention import hf_attention
from lowbit.nn import experts
from lowbit.versions import warn_of_untested

warn_of_untested()
hf_attention.register()
experts.register()
