"""Bounds of the networks' options: a file that exceeds them is refused before anything of that size is built."""

from __future__ import annotations

from collections.abc import Mapping

from compress.errors import NetworkError


def check_counts(limits: Mapping[str, tuple[int, int]], **options: object) -> None:
    """Refuse an option that is not an integer within its limits.

    Raises
    ------
    NetworkError
        Names the option, its bounds and its value.
    """
    for name, value in options.items():
        low, high = limits[name]
        if type(value) is not int or not low <= value <= high:
            raise NetworkError(f"the network's option {name} must be an integer from {low} to {high}", found=value)


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Refuse an option that is not one of the known values.

    Raises
    ------
    NetworkError
        Lists the known values.
    """
    if not any(type(value) is type(choice) and value == choice for choice in known):
        raise NetworkError(
            f"unknown value of the network's option {name}",
            found=value,
            hint=f"Known: {', '.join(map(str, known))}",
        )
