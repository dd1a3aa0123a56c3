"""Measuring latency and naming the machine."""
