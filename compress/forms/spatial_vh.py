"""A column of kernel places, then a row: kx1, 1xk."""

from __future__ import annotations

from typing import ClassVar

from compress.forms.spatial import SpatialForm


class SpatialVhForm(SpatialForm):
    """Vertical, then horizontal."""

    name: ClassVar[str] = "spatial_vh"
    summary: ClassVar[str] = "kx1, 1xk"
    axis: ClassVar[int] = 0
