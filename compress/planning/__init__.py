"""Choosing ranks: from layers and a target to a plan."""
