"""Changing networks: from a plan to a new network."""
