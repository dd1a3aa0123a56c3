"""All forms by name. A new form is a file of its own and one line here."""

from __future__ import annotations

from torch import nn

from compress.errors import PlanError, similar
from compress.forms.base import Form, Shape
from compress.forms.cp_separable import CpSeparableForm
from compress.forms.modules import FactorizedLayer
from compress.forms.spatial_hv import SpatialHvForm
from compress.forms.spatial_vh import SpatialVhForm
from compress.forms.svd import SvdForm
from compress.forms.tucker1_in import Tucker1InForm
from compress.forms.tucker1_out import Tucker1OutForm
from compress.forms.tucker2 import Tucker2Form
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo

#: All forms, those that rules with fixed ranks use first.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Tucker2Form(),
        SvdForm(),
        Tucker1InForm(),
        Tucker1OutForm(),
        SpatialVhForm(),
        SpatialHvForm(),
        CpSeparableForm(),
    )
}


def get_form(name: str) -> Form:
    """The form of that name.

    Raises
    ------
    PlanError
        If there is none.
    """
    if name not in FORMS:
        raise PlanError(f"unknown form{similar(name, FORMS)}", found=name, hint=f"Known: {', '.join(FORMS)}")
    return FORMS[name]


def applicable(shape: Shape, kind: str, groups: int) -> tuple[Form, ...]:
    """Forms that a layer with this kernel (T, S, *k) can have, the usual one first; none for a depthwise convolution.

    Parameters
    ----------
    shape : sequence of int
        Kernel of one group, as of `compress.network.kernels.kernel_shape`.
    kind : str
        As of `LayerInfo`.
    groups : int
        Groups of channels.
    """
    return tuple(form for form in FORMS.values() if form.applies(shape, kind, groups))


def forms_for(layer: LayerInfo) -> tuple[Form, ...]:
    """Forms that a layer can have, the usual one first; none for a depthwise convolution."""
    return applicable(layer_kernel(layer), layer.kind, layer.groups)


def timed_forms() -> tuple[str, ...]:
    """Names of the forms that a latency budget times and considers."""
    return tuple(name for name, form in FORMS.items() if form.timed)


def is_factorized(module: nn.Module) -> bool:
    """Whether a module is a layer in one of the forms."""
    return isinstance(module, FactorizedLayer)


def form_of(module: nn.Module) -> Form | None:
    """The form of a factorized layer, None for any other module."""
    return FORMS[module.form] if isinstance(module, FactorizedLayer) else None
