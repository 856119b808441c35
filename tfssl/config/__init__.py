"""Settings as values: the sections, one config per run, their flags, bounds, and the record of a
run."""
