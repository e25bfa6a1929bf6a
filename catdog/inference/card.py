"""The model card: `README.md` in the bundle's folder, for people and in the fields that Hugging Face reads.

It says what `bundle.json` and the list of images say, and nothing else. It has no checksum: people may add to it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from catdog.inference.provenance import Provenance

if TYPE_CHECKING:
    from catdog.inference.bundle import BundleInfo

NAME = "README.md"
_FIGURES = {
    "epoch": "epoch that is kept",
    "n": "images",
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "log_loss_calibrated": "log loss, calibrated",
    "log_loss_cross_chosen": "log loss, each half in the epoch that the other half chooses",
    "log_loss_cross_searched": "log loss, each half by the trial that the other half chooses",
}


def write_card(info: BundleInfo, provenance: Provenance) -> str:
    """Writes the card of a bundle.

    Args:
        info: what `bundle.json` holds.
        provenance: the images that made it.

    Returns:
        Markdown with a YAML header, of which JSON is a subset.
    """
    header = {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["catdog", "image-classification", info.architecture, *info.class_names],
        "model-index": [{"name": info.architecture, "results": [_result(info)]}],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]
    return "\n".join(["---", *lines, "---", "", _TEXT.format(**_words(info, provenance))])


def _result(info: BundleInfo) -> dict[str, object]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": f"catalog {info.catalog_fingerprint[:12]}", "type": "image", "split": "validation"},
        "metrics": [
            {"type": key, "name": _FIGURES[key], "value": info.validation[key]}
            for key in ("accuracy", "log_loss", "log_loss_calibrated")
            if key in info.validation
        ],
    }


def _words(info: BundleInfo, provenance: Provenance) -> dict[str, str]:
    first, second = info.class_names
    options = info.training.get("options", {})
    counted = f"{len(provenance.train):,} different images" if len(provenance.train) else "images that it does not name"
    chosen = "Its epoch, or the model among others, was chosen on these images, so the figures are too good."
    figures = [
        f"| {_FIGURES.get(name, name.replace('_', ' '))} | {value:.6g} |" for name, value in info.validation.items()
    ]
    return {
        "first": first,
        "second": second,
        "size": str(info.image_size),
        "model": f"{len(info.members)} models, averaged" if len(info.members) > 1 else "one model",
        "architecture": info.architecture,
        "recipe": f", recipe {options['recipe']}" if options.get("recipe") else "",
        "weights": f", pretrained weights {_name(options['weights'])}"
        if options.get("weights", "none") != "none"
        else "",
        "counted": counted,
        "all": "" if info.images_known else " This may not be all of them.",
        "teacher": _describe_teacher(info),
        "prior": f"{info.prior:.3f}",
        "figures": "\n".join(["| figure | value |", "|---|---|", *figures]),
        "chosen": chosen if info.chosen_on == "validation" else "These images chose neither the epoch nor the model.",
        "calibration": (
            f"Fitted on the validation images: temperature {info.temperature:.4g}, probabilities between "
            f"{info.clip:.3g} and {1 - info.clip:.6g}."
            if info.calibration == "validation"
            else "None was fitted."
        ),
        "views": ", ".join(info.views),
        "temperature": repr(info.temperature),
        "member": info.members[0],
        "onnx": _ONNX.format(
            file=info.members[0].removesuffix(".keras"),
            size=info.image_size,
            how=_SAME if info.quantisation is None else "in int8",
        )
        if info.onnx == "verified"
        else "",
        "precision": _INT8.format(**info.quantisation.model_dump()) if info.quantisation else "",
        "versions": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    }


def _describe_teacher(info: BundleInfo) -> str:
    """What a distilled model learned from; "" of any other."""
    teacher = info.training.get("teacher")
    if not isinstance(teacher, dict):
        return ""
    return _TEACHER.format(
        architecture=teacher.get("architecture"),
        members=teacher.get("members"),
        fingerprint=str(teacher.get("fingerprint"))[:12],
        share=info.training.get("options", {}).get("teacher_share"),
    )


def _name(weights: str) -> str:
    """Where weights come from, without the folders of a machine."""
    return weights.rstrip("/").rpartition("/")[2]


_TEXT = """\
# {architecture}: {first} or {second}

## What it is for

It gives a picture the probability that it shows {second} rather than {first}. It was made for pictures that show one of
the two, and that look like those it was validated on.

* {model} ({architecture}{recipe}{weights})
* input: uint8 RGB, N×{size}×{size}×3, the whole image squeezed to a square; output: one logit, positive for {second}

## Training

{counted}; of all that were listed, a share of {prior} is {second}.{all}{teacher}
Options and history are in `bundle.json`, digests of the images in `images.parquet`.

## Validation

{figures}

Log losses are in nats. {chosen}
{precision}
## Calibration

{calibration}

## Limitations

* A picture of neither class gets a probability all the same.
* The figures hold for pictures like the validation images; for others they are not known.
* The model was measured as a whole: not by breed, background or camera.

## How to use it

With catdog: `catdog score --model FOLDER --data DATA`. It averages members and views ({views}), and applies temperature
and clip. In plain Keras, one member and one view:

```python
import keras
import numpy as np

model = keras.saving.load_model("{member}")
images = np.zeros((1, {size}, {size}, 3), "uint8")  # yours, RGB
logits = model.predict(images)[:, 0]
print(1 / (1 + np.exp(-logits / {temperature})))  # probability of {second}
```
{onnx}
Made with {versions}.
"""

_TEACHER = """
It was distilled from a bundle ({architecture}; models: {members}; fingerprint {fingerprint}), whose probabilities were
its targets with a weight of {share}; the labels had the rest. The images of that bundle are counted here too.
"""

_SAME = "which gave the same logits when the model was saved"
_INT8 = """
## Precision

The ONNX files are int8, made from float32 ones with {calibration_images:,} training images and weights of {weight_bits}
bits; the Keras files are float32. On {n:,} validation images, with all views and temperature and clip fitted again
(cross-fitted), float32 has a log loss of {log_loss_float32:.4f}, and int8 {log_loss_change:+.5f} (95 % interval
{log_loss_change_low:+.5f} to {log_loss_change_high:+.5f}). The figures above are of int8.
"""

_ONNX = """
In ONNX Runtime, {how}:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}.onnx")
(name,) = (entry.name for entry in session.get_inputs())
images = np.zeros((1, {size}, {size}, 3), "uint8")  # yours, RGB
logits = session.run(None, {{name: images}})[0][:, 0]
```
"""
