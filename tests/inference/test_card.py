"""The model card: fields that Hugging Face reads, figures of the bundle alone, and code that runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import saved_info

from catdog.data.catalog import Catalog
from catdog.inference import bundle, card, export
from catdog.inference.bundle import ModelBundle
from catdog.inference.provenance import Provenance


def header(text: str) -> dict:
    """The YAML in front of a card."""
    before, fields, _ = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(fields)


def test_the_card_of_a_bundle_has_its_figures(untrained: str, drawn: Catalog) -> None:
    text = (Path(untrained) / card.NAME).read_text()
    fields = header(text)
    assert fields["library_name"] == "keras"
    assert {"small_resnet", "cat", "dog"} <= set(fields["tags"])
    (model,) = fields["model-index"]
    (result,) = model["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"]["name"] == f"catalog {drawn.fingerprint[:12]}"
    assert result["metrics"] == [{"type": "log_loss", "name": "log loss", "value": 0.7}]
    assert "| log loss | 0.7 |" in text
    assert "images that it does not name" in text


def test_its_code_gives_the_bundles_logits(untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(untrained, tmp_path / "model")
    blocks = re.findall(r"```python\n(.*?)```", (folder / card.NAME).read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(folder)
    pictures = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = ModelBundle.load(untrained, "tensorflow").logits(pictures)
    for block in blocks:
        found: dict = {}
        exec(re.sub(r"^images = .*$", "", block, flags=re.MULTILINE), found | {"images": pictures}, found)
        assert found["logits"] == pytest.approx(expected, abs=1e-4)


def test_what_is_said_depends_on_the_bundle(drawn: Catalog) -> None:
    known = Provenance(np.arange(1234, dtype=np.uint64), np.arange(5, dtype=np.uint64), known=True)
    figures = {"epoch": 3, "n": 991, "log_loss": 0.0353, "accuracy": 0.9868, "log_loss_calibrated": 0.0381}
    text = card.write_card(
        saved_info(
            drawn, validation=figures, calibration="validation", temperature=1.25, clip=0.001, chosen_on="validation",
            class_names=("pied: noir", 'the "other"'), members=["model.keras", "model-2.keras"], images_known=False,
            training={"options": {"recipe": "best", "weights": "s3://bucket/weights/w.h5"}},
        ),
        known,
    )  # fmt: skip
    fields = header(text)
    assert 'the "other"' in fields["tags"]
    metrics = fields["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in metrics} == {
        "accuracy": 0.9868,
        "log_loss": 0.0353,
        "log_loss_calibrated": 0.0381,
    }
    for said in (
        "1,234 different images", "may not be all", "2 models, averaged", "temperature 1.25", "0.001 and 0.999",
        "figures are too good", "recipe best, pretrained weights w.h5", "| images | 991 |",
    ):  # fmt: skip
        assert said in text
    assert "s3://bucket" not in text
    assert "ONNX Runtime, which" not in text


def test_it_follows_a_later_choice_and_may_be_edited_or_absent(untrained: str, tmp_path: Path) -> None:
    folder = shutil.copytree(untrained, tmp_path / "model")
    export.mark_chosen(str(folder), log_loss_cross_searched=0.5)
    assert "| log loss, each half by the trial that the other half chooses | 0.5 |" in (folder / card.NAME).read_text()
    (folder / card.NAME).write_text("mine")
    assert ModelBundle.load(str(folder)).info.chosen_on == "validation"
    (folder / card.NAME).unlink()
    assert bundle.read_info(str(folder)).info.chosen_on == "validation"
    assert ModelBundle.load(str(folder)).info.image_size == 32
