from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from compress.checkpoint.load import load
from compress.data.coco import CocoDataset
from compress.evaluation.inputs import calibration_inputs
from compress.network.output_error import output_errors
from compress.network.statistics import Calibration, Sampling, measure_sensitivity
from compress.planning.budgeted import eligible, measure_curves, plan_within
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.factorize import factorize

SIZE = (192, 256)


@pytest.mark.real
@pytest.mark.slow
def test_factors_fitted_to_images_keep_what_weights_alone_lose(assets: Path) -> None:
    (path,) = assets.glob("weights/human-pose-estimation-0001/**/*.pth")
    model = load(path).at_size(SIZE)
    module, name = model.module, model.name
    images = {}
    for split in ("train2017", "val2017"):
        annotations = assets / f"annotations/person_keypoints_{split}_subset.json"
        data = CocoDataset(annotations, assets / "images/coco" / split)
        images[split] = calibration_inputs(data, model, 12, SIZE[0])
    layers = model.layers
    names, kept = eligible(layers, Selection(pointwise=True))
    calibration = Calibration(
        images["train2017"], measure_sensitivity(module, images["train2017"], names, sampling=Sampling(positions=256))
    )

    half = make_plan(module, Ratio(Fraction(1, 2)), network=name, input_size=SIZE)
    plain = output_errors(module, factorize(module, half).module, images["val2017"])
    fitted = factorize_with_data(module, half, calibration, rounds=0)
    aware = output_errors(module, fitted.module, images["val2017"])
    assert plain["pafs"] > 0.7
    assert aware["pafs"] < 0.4 * plain["pafs"]
    assert all(x.output_error is not None and 0 < x.output_error < 0.5 for x in fitted.plan.changed)

    # The same MACs spent over all layers and forms lose much less again.
    curves = measure_curves(module, layers, kept, calibration)
    bound = fitted.plan.macs[1]
    rest = sum(x.macs for x in layers) - sum(listed[0].macs for listed in curves.candidates.values())
    planned = plan_within(curves, bound, lambda _, x: x.macs, fixed=rest, network=name, input_size=SIZE)
    assert planned.price <= bound
    budgeted = factorize_with_data(module, planned.plan, calibration, rounds=0)
    assert output_errors(module, budgeted.module, images["val2017"])["pafs"] < 0.7 * aware["pafs"]
