"""A row of kernel places, then a column: 1xk, kx1."""

from __future__ import annotations

from typing import ClassVar

from compress.forms.spatial import SpatialForm


class SpatialHvForm(SpatialForm):
    """Horizontal, then vertical; for long patches the other order is tried alone, it costs the same."""

    name: ClassVar[str] = "spatial_hv"
    summary: ClassVar[str] = "1xk, kx1"
    axis: ClassVar[int] = 1
    stand_in: ClassVar[str] = "spatial_vh"
