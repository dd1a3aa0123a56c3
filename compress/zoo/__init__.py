"""Pose networks: one file a paper, their shared layers, and the registry that builds them by name."""
