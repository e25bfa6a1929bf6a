"""Recipes: named sets of training options. To add one, add an entry to `RECIPES`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from catdog.errors import unknown
from catdog.training.request import Augmentation


@dataclass(frozen=True)
class Recipe:
    """A named set of options.

    Attributes:
        name: what `--recipe` takes.
        summary: one line on what it is.
        options: fields of `TrainConfig` and their values.
    """

    name: str
    summary: str
    options: dict[str, Any] = field(default_factory=dict)


# The data generators of the Keras 1 tutorials: shear is in degrees there too, so 0.2 of it is next to nothing.
_GENERATOR = Augmentation(mirror=True, zoom=0.2, shift=0.2, fill="nearest")
_CONSTANT: dict[str, Any] = {"schedule": "constant", "warm_up": 0.0}

_FINE_TUNE: dict[str, Any] = {
    "head_first": True,
    "trainable_from": "auto",
    "train_scale": 6 / 7,
    "weight_decay": 1e-3,
    "warm_up": 0.1,
    "augmentation": Augmentation(mirror=True, crop=(0.75, 1.0), aspect=1.18, brightness=25, contrast=0.2),
    "keep": "last",
    "views": ["identity", "mirror", "crop-88", "crop-88-mirror"],
    "calibrate": True,
}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("plain", "AdamW with warm-up and cosine, light augmentation, best epoch; what other recipes start from"),
        Recipe(
            "fine-tune",
            "head first, then the upper blocks: random crops, cosine, four views, calibrated",
            _FINE_TUNE,
        ),
        Recipe(
            "best",
            "three fine-tuned models in one bundle, one of them smaller; almost three times the time",
            # With --arch, three of that one.
            _FINE_TUNE | {"members": [{"seed": 0}, {"seed": 1}, {"seed": 2, "arch": "efficientnet_lite0"}]},
        ),
        Recipe(
            "linear-probe",
            "a logistic head on the frozen backbone's features, computed once; minutes instead of hours",
            {
                "freeze": True,
                "head_first": True,
                "epochs": 0,
                "augment": False,
                "keep": "last",
                "views": _FINE_TUNE["views"],
                "calibrate": True,
            },
        ),
        Recipe(
            "blog-cnn",
            "a blog's small CNN: Adam, batch 16, strong augmentation, patience 5",
            {
                "arch": "blog_cnn",
                "optimizer": "adam",
                "batch_size": 16,
                "epochs": 50,
                "patience": 5,
                "augmentation": _GENERATOR.model_copy(update={"rotation": 40.0, "shear": 0.2}),
                **_CONSTANT,
            },
        ),
        Recipe(
            "workshop-cnn",
            "the NTUOSS workshop's CNN: RMSprop, batch 50, patience 2",
            {
                "arch": "workshop_cnn",
                "optimizer": "rmsprop",
                "batch_size": 50,
                "epochs": 25,
                "patience": 2,
                "augmentation": _GENERATOR.model_copy(update={"rotation": 30.0}),
                **_CONSTANT,
            },
        ),
        Recipe(
            "workshop-vgg16",
            "the NTUOSS workshop's frozen VGG16 with a 256-unit head",
            {
                "arch": "vgg16",
                "freeze": True,
                "optimizer": "rmsprop",
                "batch_size": 50,
                "epochs": 25,
                "patience": 2,
                "learning_rate": 1e-3,
                "augmentation": _GENERATOR.model_copy(update={"rotation": 30.0}),
                **_CONSTANT,
            },
        ),
        Recipe(
            "fastai-vgg16",
            "fast.ai's first lesson: the whole VGG16, its last layer alone retrained",
            {
                "arch": "vgg16_top",
                "freeze": True,
                "optimizer": "adam",
                "learning_rate": 1e-3,
                "epochs": 3,
                "augment": False,
                **_CONSTANT,
            },
        ),
        Recipe(
            "gray-cnn",
            "the winner of a tutorial's grid: three convolutions of 64 on grey pixels, classes balanced",
            {
                "arch": "gray_cnn",
                "optimizer": "adam",
                "batch_size": 32,
                "epochs": 10,
                "augment": False,
                "balance": True,
                **_CONSTANT,
            },
        ),
        Recipe(
            "little-data",
            "the Keras blog's two steps: a dense head on VGG16's features, then its last block fine-tuned",
            {
                "arch": "vgg16",
                "head_first": True,
                "trainable_from": "block5_conv1",
                "optimizer": "sgd",
                "learning_rate": 1e-4,
                "dropout": 0.5,
                "batch_size": 16,
                "epochs": 50,
                "augmentation": Augmentation(mirror=True, zoom=0.2, shear=0.2, fill="nearest"),
                **_CONSTANT,
            },
        ),
        Recipe(
            "scratch",
            "no weights at all: a small residual network, random crops, one long cosine",
            {
                "arch": "small_resnet",
                "image_size": 128,
                "train_scale": 0.75,
                "epochs": 60,
                "learning_rate": 3e-3,
                "weight_decay": 2e-2,
                "augmentation": Augmentation(
                    mirror=True, crop=(0.5, 1.0), aspect=1.33, brightness=25, contrast=0.3, rotation=10
                ),
                "keep": "last",
                "views": ["identity", "mirror"],
                "calibrate": True,
            },
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """Looks a recipe up.

    Raises:
        UsageError: unknown name.
    """
    if name not in RECIPES:
        raise unknown("--recipe", name, RECIPES)
    return RECIPES[name]
