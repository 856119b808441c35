"""One training step, its loop, and what happens between steps. Nothing here knows a task."""
