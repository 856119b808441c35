"""Losses: plain functions of tensors, without state. Those named here take embeddings of two views,
and give one value: of the batch, or of each image. The modules beside this one have the same with
all that a task measures."""

from __future__ import annotations

import tensorflow as tf

from tfssl.losses import contrastive, distillation, statistics
from tfssl.losses.normality import sigreg
from tfssl.losses.triplet import triplet_semihard

__all__ = [
    "barlow_twins",
    "dcl",
    "dino",
    "nnclr",
    "nt_xent",
    "sigreg",
    "sup_con",
    "triplet_semihard",
    "vicreg",
]


def nt_xent(z1: tf.Tensor, z2: tf.Tensor, temperature: float = 0.1) -> tf.Tensor:
    """SimCLR's loss of each image, [N], from embeddings [N, D]: `contrastive.nt_xent`."""
    return contrastive.nt_xent(z1, z2, temperature).loss


def dcl(z1: tf.Tensor, z2: tf.Tensor, temperature: float = 0.1) -> tf.Tensor:
    """The decoupled contrastive loss of each image, [N], from embeddings [N, D] (Yeh et al., arXiv
    2110.06848)."""
    return contrastive.nt_xent(z1, z2, temperature, decoupled=True).loss


def sup_con(z1: tf.Tensor, z2: tf.Tensor, labels: tf.Tensor, temperature: float = 0.1) -> tf.Tensor:
    """The supervised contrastive loss of each image, [N], from embeddings [N, D] and labels [N]
    (Khosla et al., arXiv 2004.11362)."""
    return contrastive.nt_xent(z1, z2, temperature, labels=labels).loss


def nnclr(
    z1: tf.Tensor,
    z2: tf.Tensor,
    p1: tf.Tensor,
    p2: tf.Tensor,
    queue: tf.Tensor,
    temperature: float = 0.1,
) -> tf.Tensor:
    """NNCLR's loss of each image, [N] (Dwibedi et al., arXiv 2104.14548): the nearest neighbor of
    each view's projection, in a queue of earlier ones [K, D] of norm 1, is told the other view's
    prediction [N, D] among those of the batch."""
    pairs = ((z1, p2), (z2, p1))
    return (
        sum(
            contrastive.in_batch(contrastive.nearest(z, queue), p, temperature).loss
            for z, p in pairs
        )
        / 2
    )


def barlow_twins(z1: tf.Tensor, z2: tf.Tensor, redundancy_weight: float = 0.0051) -> tf.Tensor:
    """The loss of Barlow Twins, a scalar, from embeddings [N, D]: `statistics.barlow_twins`."""
    return statistics.barlow_twins(z1, z2, redundancy_weight).loss


def vicreg(
    z1: tf.Tensor,
    z2: tf.Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> tf.Tensor:
    """VICReg's loss of each image, [N], from embeddings [N, D]: `statistics.vicreg`."""
    return statistics.vicreg(z1, z2, invariance_weight, variance_weight, covariance_weight).loss


def dino(
    scores: tf.Tensor,
    targets: tf.Tensor,
    center: tf.Tensor,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> tf.Tensor:
    """DINO's loss of each image, [N], from the student's scores of all views [N, V, K], the
    teacher's of the large ones [N, G, K], and their center [K]: `distillation.dino`."""
    return distillation.dino(scores, targets, center, temperature, teacher_temperature).loss
