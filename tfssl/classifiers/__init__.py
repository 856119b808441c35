"""Classifiers on encoders: fine-tuning, predictions, label subsets."""
