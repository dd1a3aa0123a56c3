"""Compression of human-pose networks: ranks, factorization, recovery, export and honest reports."""

__version__ = "0.1.0"
