"""Distillation (Hinton et al. 2015): how far a model's outputs are from its teacher's."""

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lowbit.evaluation.teacher_forcing import IGNORED


def divergence(
    logits: Float[Tensor, "*batch classes"],
    wanted: Float[Tensor, "*batch classes"],
    labels: Int64[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """The mean over tokens, or over texts that are classified, of Σ p log(p / q), p being the
    teacher's; padding is left out. Of a regression, which has one "class": of squared errors."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.float(), wanted.float())
    at = labels != IGNORED
    log_q, log_p = logits[at].float().log_softmax(-1), wanted[at].float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
