"""Weights of other projects: files in, and layouts out."""
