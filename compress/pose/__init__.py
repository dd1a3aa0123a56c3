"""Skeletons, targets, decoding and the description of a pose network that travels with its weights."""
