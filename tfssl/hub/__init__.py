"""Hub modules: handles, downloads, loading."""
