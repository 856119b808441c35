"""Losses: plain functions of tensors, without state."""

from tfssl.losses.triplet import triplet_semihard  # noqa: F401
