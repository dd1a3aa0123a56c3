"""Where a network comes from: a registered name with options, or the user's own code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetworkSpec:
    """A network's name and options: enough to build the module before any edit.

    Attributes
    ----------
    name : str
        A name of `compress.zoo.registry`, or the user's own code: ``package.module:factory``, ``file.py:factory``, or
        the module and name of a class of which an instance was wrapped. The user's code is run only when the user
        names it, never because a file does.
    options : mapping
        Keyword arguments of the builder.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_custom(self) -> bool:
        """Whether building this network runs code from outside the package."""
        return ":" in self.name
