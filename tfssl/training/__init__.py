"""What training adds to a step: checkpoints, callbacks, summaries, probes, provenance."""
