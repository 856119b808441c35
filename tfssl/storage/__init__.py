"""Files on disk: atomic writes, locks, the cache folder, arrays with checksums, archives of
strangers."""
