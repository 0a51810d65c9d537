"""Stage 2's contrast (paper section 3.2): what is compared, NT-Xent, and whether views of a sample find each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_unimrseg.utils.hardware import without_autocast

SMALLEST_SHARE = 1e-2
"""Share of a feature's size that is added to its spread: smaller differences between samples are mostly rounding."""


def pooled_statistics(x: Tensor) -> Tensor:
    """Return mean and standard deviation over the voxels of each channel: `(B, F, X, Y[, Z])` to float32 `(B, 2F)`."""
    voxels = x.flatten(2).float()
    return torch.cat((voxels.mean(2), voxels.std(2, correction=0)), 1)


def standardise(features: Tensor, reference: Tensor) -> Tensor:
    """Subtract the mean of `reference` `(N, F)` from `features` `(B, F)` and divide by its spread.

    Else what all samples share would make any two of them alike, and the largest feature would decide. The spread is
    the standard deviation plus `SMALLEST_SHARE` of the mean size.
    """
    reference = reference.detach().float()
    spread = reference.std(0, correction=0) + SMALLEST_SHARE * reference.abs().mean(0) + torch.finfo().tiny
    return (features.float() - reference.mean(0)) / spread


class NegativesMemory:
    """The pooled features of past steps, further negatives of `multi_stage_nt_xent`; the oldest are dropped first.

    Args:
        size: how many features are kept of each encoder stage.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.features: list[Tensor] = []
        self.patients = torch.empty(0, dtype=torch.long)

    def add(self, features: Sequence[Tensor], patients: Tensor) -> None:
        """Keep features, `(B, F_stage)` for each stage, and their `(B,)` patients."""
        if self.size == 0:
            return
        if not self.features:
            self.features = [stage.new_empty(0, stage.shape[1]) for stage in features]
            self.patients = self.patients.to(patients)
        self.patients = torch.cat((self.patients, patients))[-self.size :]
        self.features = [
            torch.cat((kept, stage.detach()))[-self.size :] for kept, stage in zip(self.features, features, strict=True)
        ]


def nt_xent(
    first: Tensor,
    second: Tensor,
    patients: Tensor,
    temperature: float = 0.5,
    past: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Normalised temperature-scaled cross entropy between two views of B samples (paper section 3.2).

        l(a) = -log( exp(s(a, p) / t) / (exp(s(a, p) / t) + sum over n of exp(s(a, n) / t)) )

    averaged over the 2B anchors a, where s is cosine similarity, p the other view of the anchor's sample, and n runs
    over all views of other patients' samples (never of the anchor's own patient). Without any negative the loss is 0.

    Args:
        first, second: `(B, F)` features of the two views; gradients flow into both.
        patients: `(B,)` integers, equal for samples of the same patient.
        temperature: t, above 0.
        past: further negatives, the `(N, F)` features of past steps (detached) and their `(N,)` patients.

    Returns:
        A scalar, at least 0. Source: Chen et al. 2020 (SimCLR), the positive being part of the denominator; past
        negatives as in Wu et al. 2018 (memory bank).
    """
    count = first.shape[0]
    views = F.normalize(torch.cat((first, second)).float(), dim=1)
    patients = patients.to(views.device)
    anchors = candidates = patients.repeat(2)
    others = views
    if past is not None:
        past_features, past_patients = past
        others = torch.cat((views, F.normalize(past_features.detach().float(), dim=1)))
        candidates = torch.cat((candidates, past_patients.to(views.device)))
    with without_autocast(views.device):
        similarity = views @ others.T / temperature
    positive = torch.arange(2 * count, device=views.device).roll(count)
    is_positive = torch.arange(len(candidates), device=views.device) == positive[:, None]
    considered = (anchors[:, None] != candidates[None, :]) | is_positive
    return F.cross_entropy(similarity.masked_fill(~considered, float("-inf")), positive)


def multi_stage_nt_xent(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    patients: Tensor,
    temperature: float = 0.5,
    memory: NegativesMemory | None = None,
) -> Tensor:
    """Return the mean over encoder stages of `nt_xent`, each stage's features `(B, F_stage)` being standardised.

    With a `memory` its features are negatives too, and part of what they are standardised by; it is not changed.
    """
    past: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(first)
    if memory is not None and memory.features:
        past = [(kept, memory.patients) for kept in memory.features]
    terms = []
    for one, other, kept in zip(first, second, past, strict=True):
        reference = torch.cat((one, other) if kept is None else (one, other, kept[0]))
        kept = None if kept is None else (standardise(kept[0], reference), kept[1])
        terms.append(nt_xent(standardise(one, reference), standardise(other, reference), patients, temperature, kept))
    return torch.stack(terms).mean()


def retrieval(first: Tensor, second: Tensor, patients: Tensor) -> tuple[float, float]:
    """Return how often a sample's own other view is the nearest among those of other patients, and the chance of it.

    Args:
        first, second: `(B, F)` features of the two views of each sample; similarity is that of `nt_xent`.
        patients: `(B,)` integers, equal for samples of the same patient, which are no candidates for each other.

    Returns:
        Two shares from 0 to 1, means over both directions and the samples that have a candidate besides their own;
        NaN where none has.
    """
    reference = torch.cat((first, second))
    one, other = (F.normalize(standardise(view, reference), dim=1) for view in (first, second))
    own = torch.eye(len(one), dtype=torch.bool, device=one.device)
    candidates = (patients[:, None] != patients[None, :]) | own
    counted = candidates.sum(1) > 1
    similarity = (one @ other.T).masked_fill(~candidates, float("-inf"))
    found = [scores.argmax(1) == own.int().argmax(1) for scores in (similarity, similarity.T)]
    share = torch.stack(found).float().mean(0)[counted].mean()
    return float(share), float((1 / candidates.sum(1)[counted]).mean())
