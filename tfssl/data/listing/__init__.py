"""Which files of a folder are the data set, how they are sorted, and whether they decode."""
