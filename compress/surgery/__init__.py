"""Changing networks: from a plan to a new network."""

# A file may hold any kind of edit, so whoever opens the room knows them all.
from compress.surgery import attention as attention
from compress.surgery import compose as compose
from compress.surgery import fold as fold
