"""Name maps, one for each way of naming a network's weights, read in both directions."""
