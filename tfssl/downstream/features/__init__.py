"""Features of images: the frozen encoder, extraction, pooling, cached arrays and maps."""
