"""Optimization of linear classifiers on arrays."""
