"""Recipes: what the tutorials did, what is decided for a newcomer, and that what is given stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from catdog.errors import UsageError
from catdog.models import registry
from catdog.training import recipes
from catdog.training.config import TrainConfig


@pytest.fixture
def weights(tmp_path: Path) -> str:
    (tmp_path / "any.h5").write_bytes(b"")
    return str(tmp_path / "any.h5")


def test_pretrained_weights_alone_mean_fine_tuning(weights: str) -> None:
    config = TrainConfig(data="d", arch="mobilenet", weights=weights).resolve()
    assert (config.recipe, config.freeze, config.head_first, config.keep) == ("fine-tune", False, True, "last")
    assert config.trainable_from == "conv_dw_4"
    assert config.calibrate
    assert TrainConfig(data="d", arch="mobilenet", weights=weights, freeze=True).resolve().recipe == "plain"
    assert TrainConfig(data="d", arch="mobilenet", weights="none").resolve().recipe == "plain"
    assert TrainConfig(data="d").resolve().arch == "small_resnet"


def test_what_is_given_stands_and_the_rest_is_the_recipes(weights: str) -> None:
    given = TrainConfig(data="d", arch="mobilenet", weights=weights, epochs=3, augmentation={"rotation": 7})
    config = given.resolve()
    assert config.epochs == 3
    assert config.augmentation.rotation == 7
    assert config.augmentation.crop == recipes.get_recipe("fine-tune").options["augmentation"].crop
    # What a run was resolved to is what it resolves to again, from JSON too.
    again = TrainConfig(**config.model_dump(mode="json")).resolve()
    assert again == config


@pytest.mark.parametrize(
    ("name", "optimizer", "batch", "epochs", "patience", "rotation"),
    [("blog-cnn", "adam", 16, 50, 5, 40), ("workshop-cnn", "rmsprop", 50, 25, 2, 30)],
)
def test_the_small_cnns_are_trained_as_in_their_tutorials(
    name: str, optimizer: str, batch: int, epochs: int, patience: int, rotation: float
) -> None:
    config = TrainConfig(data="d", recipe=name).resolve()
    assert (config.optimizer, config.batch_size, config.epochs, config.patience) == (optimizer, batch, epochs, patience)
    assert config.augmentation.rotation == rotation
    assert (config.augmentation.zoom, config.augmentation.shift, config.augmentation.mirror) == (0.2, 0.2, True)
    assert config.keep == "best"
    assert config.schedule == "constant"


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_resolves_to_something_that_can_be_built(name: str) -> None:
    options = {"arch": "mobilenet"} if name in ("fine-tune", "best", "linear-probe") else {}
    config = TrainConfig(data="d", recipe=name, weights="none", **options).resolve()
    assert config.recipe == name
    arch = registry.get_architecture(config.arch or "")
    assert config.image_size == recipes.get_recipe(name).options.get("image_size", arch.image_size)
    if arch.name != "vgg16_top":  # 134 million parameters; tests/test_models.py builds it once
        model = registry.build_model(config.spec)
        assert model.output_shape == (None, 1)


def test_contradictions_are_one_line() -> None:
    for options, words in (
        ({"recipe": "magic"}, "--recipe received 'magic', expected one of plain, fine-tune"),
        ({"recipe": "linear-probe"}, "--freeze received, but small_resnet has no backbone.*--arch, one of mobilenet"),
        ({"epochs": 0}, "--epochs received 0, expected at least 1"),
        ({"arch": "vgg16", "alpha": 0.5, "weights": "none"}, "only mobilenet has a width multiplier"),
    ):
        with pytest.raises(UsageError, match=words):
            TrainConfig(data="d", **options).resolve()


def test_what_was_decided_is_written_as_it_was_asked_for_and_cannot_change() -> None:
    config = TrainConfig(data="d", workers=2).resolve()
    assert list(config.model_dump()) == list(TrainConfig.model_fields)
    left_open = {name for name, value in config if value is None}
    assert left_open == {"trainable_from", "dropout", "leave_out", "cpus_per_worker", "gpu", "address", "wait"}
    with pytest.raises(ValueError, match="frozen"):
        config.arch = "vgg16"
