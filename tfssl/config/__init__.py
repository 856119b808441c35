"""Flags and settings: the constructors' arguments, bounds, flags.flags."""
