"""Compression of human-pose networks: ranks, factorization, recovery, export and honest reports.

Importing this package is cheap: every name below is loaded when it is first used, and torch with the first call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

#: The public names and where each is defined.
_PUBLIC = {
    "load": "compress.checkpoint.load",
    "create": "compress.checkpoint.load",
    "wrap": "compress.checkpoint.wrap",
    "save": "compress.checkpoint.save",
    "images": "compress.data.source",
    "cost": "compress.model",
    "plan": "compress.compression.factorize",
    "factorize": "compress.compression.factorize",
    "search": "compress.compression.search",
    "swap_attention": "compress.compression.attention",
    "finetune": "compress.training.finetune",
    "evaluate": "compress.evaluation.evaluate",
    "find_people": "compress.evaluation.people",
    "export": "compress.exporters.export",
    "benchmark": "compress.measure.benchmark",
    "report": "compress.reporting.report",
    "Model": "compress.model",
    "Plan": "compress.planning.plan",
    "PoseSpec": "compress.pose.spec",
    "Ratio": "compress.planning.policies",
    "Vbmf": "compress.planning.policies",
    "Energy": "compress.planning.policies",
    "Budget": "compress.planning.budget",
    "Target": "compress.target",
    "CompressError": "compress.errors",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from compress.checkpoint.load import create as create
    from compress.checkpoint.load import load as load
    from compress.checkpoint.save import save as save
    from compress.checkpoint.wrap import wrap as wrap
    from compress.compression.attention import swap_attention as swap_attention
    from compress.compression.factorize import factorize as factorize
    from compress.compression.factorize import plan as plan
    from compress.compression.search import search as search
    from compress.data.source import images as images
    from compress.errors import CompressError as CompressError
    from compress.evaluation.evaluate import evaluate as evaluate
    from compress.evaluation.people import find_people as find_people
    from compress.exporters.export import export as export
    from compress.measure.benchmark import benchmark as benchmark
    from compress.model import Model as Model
    from compress.model import cost as cost
    from compress.planning.budget import Budget as Budget
    from compress.planning.plan import Plan as Plan
    from compress.planning.policies import Energy as Energy
    from compress.planning.policies import Ratio as Ratio
    from compress.planning.policies import Vbmf as Vbmf
    from compress.pose.spec import PoseSpec as PoseSpec
    from compress.reporting.report import report as report
    from compress.target import Target as Target
    from compress.training.finetune import finetune as finetune


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
