"""Writing networks for other runtimes, and proving that they are the same."""
