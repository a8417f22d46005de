"""Binary codes that are found now and then while a weight trains, and held between.

    project     codes, α and o ← the scheme, from w;  w ← Σᵢ αᵢ bᵢ + o
    FREE        ŵ = w: the decoded weight moves on, until it is projected again
    STRAIGHT    ŵ = the codes of w at the α and o last found; w itself is never replaced, and takes
                the gradient as it is (Bengio et al. 2013)
    FROZEN      ŵ = Σᵢ αᵢ bᵢ + o with the codes as they are: α and o are what is trained

After `sync` what is held is ŵ, bit for bit, in each of them: what is scored and saved is one model.
Projection as in Chung et al. 2020 ("Extremely low bit transformer quantization").
"""

from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowbit.errors import UsageError
from lowbit.formats import BinaryTensor, decode
from lowbit.formats.binary import signs
from lowbit.formats.scales import stored_dtype
from lowbit.nn.estimators import straight_through
from lowbit.qat.weights import StraightThrough
from lowbit.schemes import Binary, Scheme


class Mode(Enum):
    FREE = "free"
    STRAIGHT = "straight"
    FROZEN = "frozen"


class Codes(StraightThrough):
    """The codes of one weight; saved with the model and resumed with it."""

    planes: Tensor
    scheme: Binary

    def __init__(self, scheme: Scheme, weight: Float[Tensor, "out in"]) -> None:
        if not isinstance(scheme, Binary):
            raise UsageError(f"estimator codes needs the scheme binary, not {scheme.name}")
        super().__init__(scheme, weight)
        self.mode = Mode.FREE
        self.in_features = weight.shape[1]
        self.known: tuple[Any, list[Tensor], Tensor] | None = None
        q = scheme.quantize(weight.detach())
        self.shorter = range(len(q.alphas) - 1)  # prefixes beside the whole, where it is nested
        self.register_buffer("planes", q.planes)
        self.alpha = nn.Parameter(q.alpha.float())
        self.offset = None if q.offset is None else nn.Parameter(q.offset.float())
        for p in self.shorter:
            self.register_buffer(f"alpha_{p}", q.alphas[p].float())
            if q.offsets is not None:
                self.register_buffer(f"offset_{p}", q.offsets[p].float())

    @torch.no_grad()
    def hold(self, q: BinaryTensor) -> None:
        self.planes.copy_(q.planes)
        self.alpha.copy_(q.alpha)
        if self.offset is not None and q.offset is not None:
            self.offset.copy_(q.offset)
        for p in self.shorter:
            self.get_buffer(f"alpha_{p}").copy_(q.alphas[p])
            if q.offsets is not None:
                self.get_buffer(f"offset_{p}").copy_(q.offsets[p])

    def held(self) -> BinaryTensor:
        """What is stored, with α and o rounded as they are when they are saved."""
        alphas = [self.get_buffer(f"alpha_{p}") for p in self.shorter] + [self.alpha.detach()]
        offsets = None
        if self.offset is not None:
            shorter = [self.get_buffer(f"offset_{p}") for p in self.shorter]
            offsets = [*shorter, self.offset.detach()]
        # As the scheme decides: small α beside a larger one of their group may lose precision.
        largest = [alphas[-1].abs().amax(1).flatten()]
        others = [*alphas[:-1], *(offsets or ())]
        largest += [other.abs().clamp(min=1).flatten() for other in others]
        dtype = stored_dtype(torch.cat(largest), self.scheme.scale_dtype)
        return BinaryTensor(
            planes=self.planes,
            alphas=tuple(alpha.to(dtype) for alpha in alphas),
            offsets=None if offsets is None else tuple(offset.to(dtype) for offset in offsets),
            granularity=self.scheme.granularity,
            in_features=self.in_features,
        )

    def stored(self, weight: Float[Tensor, "out in"]) -> BinaryTensor:
        """What is computed with, for a weight: in FREE mode only right after a projection."""
        if self.mode is Mode.STRAIGHT:
            return self.scheme.recode(weight.detach(), self.held())
        return self.held()

    @torch.no_grad()
    def project(self, weight: Float[Tensor, "out in"]) -> None:
        """Find α, o and codes anew; in FREE mode the weight becomes what they stand for."""
        self.hold(self.scheme.quantize(weight))
        if self.mode is Mode.FREE:
            weight.copy_(decode(self.held()))

    @torch.no_grad()
    def sync(self, weight: Float[Tensor, "out in"]) -> None:
        """Let what is held be what is computed with; only FREE weights may have to change."""
        if self.mode is Mode.FREE:
            self.project(weight)
        else:
            self.hold(self.stored(weight))

    @torch.no_grad()
    def settle(self, weight: Float[Tensor, "out in"]) -> None:
        """The end of training: the weight becomes what is held.

        Decoded weights may have other greedy codes than those they were decoded from, so that the
        mode is FREE from here on.
        """
        weight.copy_(decode(self.held()))
        self.mode = Mode.FREE

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        if self.mode is Mode.FREE:
            return weight
        computed_with = self._decoded(weight)
        if not torch.is_grad_enabled():
            return computed_with
        trained = weight if self.mode is Mode.STRAIGHT else self._sum()
        return straight_through(trained, computed_with)

    def _decoded(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """ŵ, kept until something changes that it comes from: a tied table is asked for three times
        a step, and a model that writes asks for all weights at each token."""
        # By value: a fused optimizer leaves no trace in a tensor's version.
        state = self.mode, weight.device, weight.dtype
        of = (weight.detach(), *self.state_dict().values())
        known = self.known
        if known is None or known[0] != state or not all(map(torch.equal, of, known[1])):
            if self.mode is Mode.STRAIGHT:
                found = self.scheme.recoded(weight, self.held())
            else:
                found = decode(self.held())
            known = self.known = state, [tensor.clone() for tensor in of], found
        return known[2]

    def _sum(self) -> Float[Tensor, "out in"]:
        """Σᵢ αᵢ bᵢ + o with gradients to α and o, which float16 does not round here."""
        q = self.held()
        total = self.alpha.new_zeros(()) if self.offset is None else self.offset.t()[..., None]
        for plane, alpha in zip(signs(q), self.alpha.unbind(1), strict=True):
            total = total + q.granularity.split(plane) * alpha.t()[..., None]
        return total.flatten(1)[:, : q.in_features]
