"""Recipes: what the tutorials did, what is decided for a newcomer, and that what is given stands."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from catdog.errors import UsageError
from catdog.models import registry
from catdog.training import recipes, request, train
from catdog.training.config import explain_architecture, resolve
from catdog.training.request import TrainConfig


@pytest.fixture
def weights(tmp_path: Path) -> str:
    (tmp_path / "any.h5").write_bytes(b"")
    return str(tmp_path / "any.h5")


def test_pretrained_weights_alone_mean_fine_tuning(weights: str) -> None:
    config = resolve(TrainConfig(data="d", arch="mobilenet", weights=weights))
    assert (config.run.recipe, config.model.freeze, config.optimizer.head_first, config.validation.keep) == (
        "fine-tune",
        False,
        True,
        "last",
    )
    assert config.model.trainable_from == "conv_dw_4"
    assert config.validation.calibrate
    assert resolve(TrainConfig(data="d", arch="mobilenet", weights=weights, freeze=True)).run.recipe == "plain"
    assert resolve(TrainConfig(data="d", arch="mobilenet", weights="none")).run.recipe == "plain"


def test_without_an_architecture_the_best_installed_weights_are_taken_and_it_is_said(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(**options: Any) -> tuple[str, str, str]:
        config = resolve(TrainConfig(data="d", **options))
        return config.model.arch, config.model.weights, config.run.recipe

    def said(**options: Any) -> str:
        return explain_architecture(TrainConfig(data="d", **options))

    tuned = ("efficientnet_lite2", "imagenet", "fine-tune")
    assert taken() == taken(weights="imagenet") == tuned
    assert taken(recipe="linear-probe") == ("efficientnet_lite2", "imagenet", "linear-probe")
    assert taken(freeze=True) == ("efficientnet_lite2", "imagenet", "plain")
    assert taken(weights="none") == taken(recipe="plain") == ("small_resnet", "none", "plain")
    assert taken(recipe="gray-cnn") == ("gray_cnn", "none", "gray-cnn")
    assert taken(arch="mobilenet", weights=weights)[0] == "mobilenet"
    assert "efficientnet_lite2 with ImageNet's weights" in said()
    assert said(weights="none") == "Model: small_resnet from scratch; --arch names another one"
    assert said(arch="mobilenet") == said(recipe="gray-cnn") == ""
    assert "linear-probe takes minutes" not in said(recipe="linear-probe")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert taken() == ("small_resnet", "none", "plain")
    assert "pip install 'catdog[weights]'" in said()
    assert "pip install" not in said(weights="none")
    with pytest.raises(UsageError, match="--recipe linear-probe received, but small_resnet has no backbone"):
        resolve(TrainConfig(data="d", recipe="linear-probe"))


def test_what_is_given_stands_and_the_rest_is_the_recipes(weights: str) -> None:
    given = TrainConfig(data="d", arch="mobilenet", weights=weights, epochs=3, augmentation={"rotation": 7})
    config = resolve(given)
    assert config.optimizer.epochs == 3
    assert config.augmentation.rotation == 7
    assert config.augmentation.crop == recipes.get_recipe("fine-tune").options["augmentation"].crop
    # What a run was resolved to is what it resolves to again, from JSON too.
    again = resolve(TrainConfig(**config.options()))
    assert again == config


def test_a_member_of_another_kind_takes_what_its_own_network_wants(weights: str) -> None:
    kinds: list[dict[str, Any]] = [{"seed": 1}, {"arch": "efficientnet_lite0", "seed": 2}]
    usual = TrainConfig(data="d", arch="mobilenet", alpha=0.25, weights=weights, members=kinds)
    config = resolve(usual)
    first, second = train.member_configs(config)
    alone = resolve(TrainConfig(data="d", arch="efficientnet_lite0", image_size=config.model.image_size))
    assert first.model == config.model
    assert (second.model, second.optimizer, second.run.seed) == (alone.model, alone.optimizer, 2)
    # What was given for all holds for it, too, but for another network's weights.
    given = train.member_configs(resolve(usual.model_copy(update={"epochs": 2, "learning_rate": 0.5})))
    assert [(each.optimizer.epochs, each.optimizer.learning_rate) for each in given] == [(2, 0.5)] * 2
    bare = train.member_configs(resolve(usual.model_copy(update={"weights": "none"})))
    assert [each.model.weights for each in bare] == ["none"] * 2
    assert resolve(TrainConfig(**config.options())) == config
    # So does the recipe's own, unless an architecture is named: then all are of that one.
    kinds_of_best = [each.model.arch for each in train.member_configs(resolve(TrainConfig(data="d", recipe="best")))]
    assert kinds_of_best == ["efficientnet_lite2", "efficientnet_lite2", "efficientnet_lite0"]
    named = train.member_configs(resolve(TrainConfig(data="d", recipe="best", arch="efficientnet_lite1")))
    assert [(each.model.arch, each.run.seed) for each in named] == [("efficientnet_lite1", seed) for seed in range(3)]
    with pytest.raises(UsageError, match="--arch received 'lite0', expected one of"):
        resolve(usual.model_copy(update={"members": [{"arch": "lite0"}]}))
    with pytest.raises(ValueError, match="Input should be a valid string"):
        resolve(usual.model_copy(update={"members": [{"arch": 5}]}))


@pytest.mark.parametrize(
    ("name", "optimizer", "batch", "epochs", "patience", "rotation"),
    [("blog-cnn", "adam", 16, 50, 5, 40), ("workshop-cnn", "rmsprop", 50, 25, 2, 30)],
)
def test_the_small_cnns_are_trained_as_in_their_tutorials(
    name: str, optimizer: str, batch: int, epochs: int, patience: int, rotation: float
) -> None:
    config = resolve(TrainConfig(data="d", recipe=name))
    assert (config.optimizer.name, config.data.batch_size, config.optimizer.epochs, config.validation.patience) == (
        optimizer,
        batch,
        epochs,
        patience,
    )
    assert config.augmentation.rotation == rotation
    assert (config.augmentation.zoom, config.augmentation.shift, config.augmentation.mirror) == (0.2, 0.2, True)
    assert config.validation.keep == "best"
    assert config.optimizer.schedule == "constant"


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_resolves_to_something_that_can_be_built(name: str) -> None:
    options = {"arch": "mobilenet"} if name in ("fine-tune", "best", "linear-probe") else {}
    config = resolve(TrainConfig(data="d", recipe=name, weights="none", **options))
    assert config.run.recipe == name
    arch = registry.get_architecture(config.model.arch)
    assert config.model.image_size == recipes.get_recipe(name).options.get("image_size", arch.image_size)
    if arch.name != "vgg16_top":  # 134 million parameters; tests/test_models.py builds it once
        model = registry.build_model(config.model.spec)
        assert model.output_shape == (None, 1)


def test_contradictions_are_one_line() -> None:
    for options, words in (
        ({"recipe": "magic"}, "--recipe received 'magic', expected one of plain, fine-tune"),
        ({"freeze": True, "weights": "none"}, "--freeze received, but small_resnet has no backbone.*one of mobilenet"),
        ({"epochs": 0, "arch": "small_resnet"}, "--epochs received 0, expected at least 1"),
        ({"arch": "vgg16", "alpha": 0.5, "weights": "none"}, "only mobilenet has a width multiplier"),
    ):
        with pytest.raises(UsageError, match=words):
            resolve(TrainConfig(data="d", **options))


def test_what_was_decided_is_written_as_it_was_asked_for_and_cannot_change() -> None:
    config = resolve(TrainConfig(data="d", arch="small_resnet", workers=2))
    options = config.options()
    assert list(options) == list(TrainConfig.model_fields)
    assert json.loads(json.dumps(options)) == options
    left_open = {name for name, value in options.items() if value is None}
    of_the_cluster = {"cpus_per_worker", "gpu", "address", "wait", "store", "shuffle"}
    assert left_open == {"trainable_from", "dropout", "leave_out", "teacher"} | of_the_cluster
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.arch = "vgg16"  # type: ignore[misc]


def test_every_option_is_described_and_is_in_one_group() -> None:
    for model in (TrainConfig, request.Augmentation):
        assert [name for name, field in model.model_fields.items() if not field.description] == []
    config = resolve(TrainConfig(data="d"))
    grouped = [
        field.metadata.get("option", field.name)
        for part in vars(config).values()
        if dataclasses.is_dataclass(part)
        for field in dataclasses.fields(part)
    ]
    assert sorted([*grouped, "augmentation"]) == sorted(TrainConfig.model_fields)
