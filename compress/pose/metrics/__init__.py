"""Keypoint metrics."""
