"""What pretext tasks share: heads, memory banks, target networks, probes, views, patch tuples."""
