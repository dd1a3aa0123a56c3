"""Models in files: reading without running code, loading, wrapping, saving."""
