"""Changing networks: from a plan to a new network."""

# A checkpoint may hold any kind of edit, so all kinds are registered when this package is imported.
from compress.surgery import attention as attention
from compress.surgery import compose as compose
from compress.surgery import fold as fold
