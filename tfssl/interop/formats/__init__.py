"""Kinds of files, each read without the library that wrote it; `weights.read` tells them apart."""
