"""Hub modules of anybody: handles, downloads, loading."""
