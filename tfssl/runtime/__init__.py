"""What makes a run start, survive and be seen."""
