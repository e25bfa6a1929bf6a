"""Grad-CAM against its definition by finite differences, against class activation maps, and on what it should find."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import jpeg, write
from PIL import Image

from catdog.cli import display
from catdog.errors import CatdogError, UsageError
from catdog.inference import bundle, export
from catdog.inference.explanation import Explainer, grad_cam, overlay_heat
from catdog.models import registry
from catdog.models.registry import Architecture, ModelSpec
from catdog.models.spec import registered
from catdog.models.surgery import split_at_feature_map

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def built(name: str, size: int = 64) -> keras.Model:
    keras.utils.set_random_seed(2)
    return registry.build_model(ModelSpec(name, size, alpha=0.25 if name == "mobilenet" else 1.0))


@pytest.mark.parametrize("name", ["small_resnet", "blog_cnn", "gray_cnn", "mobilenet", "vgg16_top", "mobilenetv3small"])
def test_the_two_halves_are_the_model(name: str) -> None:
    model = built(name)
    before, after = split_at_feature_map(model)
    _, height, width, channels = before.output.shape
    assert height * width > 1
    assert channels > 3
    batch = np.stack([PIXELS, PIXELS[::-1]])
    halves = np.asarray(after(before(batch, training=False), training=False))
    assert np.array_equal(halves, np.asarray(model(batch, training=False)))


@pytest.mark.parametrize("label", [0, 1])
def test_a_heat_map_is_what_the_paper_defines_by_finite_differences(label: int) -> None:
    """A head that is not linear, so that the gradient is another one everywhere."""
    before, after = split_at_feature_map(built("blog_cnn"))
    features = np.asarray(before(PIXELS[None], training=False), np.float64)
    _, height, width, channels = features.shape
    dense = [(np.float64(layer.kernel), np.float64(layer.bias)) for layer in after.layers if layer.weights]

    def score(maps: np.ndarray) -> np.ndarray:
        """The head in float64, of N feature maps."""
        x = maps.reshape(len(maps), -1)
        for kernel, bias in dense[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
        logit = (x @ dense[-1][0] + dense[-1][1])[:, 0]
        return logit if label == 1 else -logit

    step = 1e-6
    gradient = np.empty(features.shape[1:])
    for at in np.ndindex(height, width):
        moved = np.repeat(features, channels, axis=0)
        moved[np.arange(channels), at[0], at[1], np.arange(channels)] += step
        gradient[at] = (score(moved) - score(features)) / step
    expected = np.maximum((features[0] * gradient.mean(axis=(0, 1))).sum(axis=-1), 0)
    assert expected.max() > 0
    assert grad_cam(before, after, PIXELS, label) == pytest.approx(expected / expected.max(), abs=1e-3)


@pytest.mark.parametrize("name", ["small_resnet", "mobilenet"])
def test_behind_average_pooling_it_is_the_class_activation_map(name: str) -> None:
    """Zhou et al., 2016: the feature map weighted by the head's own weights."""
    model = built(name)
    for variable in model.trainable_variables:  # as random weights give features of next to nothing
        variable.assign(variable * 1.5)
    before, after = split_at_feature_map(model)
    features = np.asarray(before(PIXELS[None], training=False))[0]
    kernel = np.asarray(model.get_layer("logit").kernel)[:, 0]
    for label, sign in ((0, -1), (1, 1)):
        expected = np.maximum(features @ (sign * kernel), 0)
        found = grad_cam(before, after, PIXELS, label)
        assert expected.max() > 1e-6
        assert found == pytest.approx(expected / expected.max(), abs=1e-4)


def red_and_blue(inputs: object, spec: ModelSpec) -> object:  # noqa: ARG001
    x = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Conv2D(2, 1, activation="relu", name="colours")(x)
    return keras.layers.Dense(1, name="logit")(keras.layers.GlobalAveragePooling2D()(x))


@pytest.fixture(scope="module")
def red_finder(tmp_path_factory: pytest.TempPathFactory, untrained: str) -> Iterator[str]:
    """A bundle whose logit grows with what is red and falls with what is blue, its weights set by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registered, "red_and_blue", Architecture("red_and_blue", red_and_blue, 64, 1, None, ""))
        model = registry.build_model(ModelSpec("red_and_blue", 64))
        red, blue = [1, -1, -1], [-1, -1, 1]
        colours = np.float32([red, blue]).T.reshape(1, 1, 3, 2)
        model.get_layer("colours").set_weights([colours, np.zeros(2, np.float32)])
        model.get_layer("logit").set_weights([np.float32([[8], [-8]]), np.zeros(1, np.float32)])
        uri = str(tmp_path_factory.mktemp("red") / "model")
        info = bundle.read_info(untrained).info
        fields = info.model_dump(exclude={"schema_version", "members", "onnx", "checksums", "versions", "images_known"})
        changed = {"architecture": "red_and_blue", "image_size": 64, "temperature": 1.0}
        export.save_bundle(uri, [model], PIXELS[None], **(fields | changed))
        yield uri


def with_corners(**colours: tuple[int, int, int]) -> np.ndarray:
    pixels = np.zeros((90, 120, 3), np.uint8)
    places = {"top_left": np.s_[:30, :40], "bottom_right": np.s_[60:, 80:]}
    for place, colour in colours.items():
        pixels[places[place]] = colour
    return pixels


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_the_heat_is_where_the_model_looks(red_finder: str) -> None:
    photo = png(with_corners(top_left=(255, 0, 0), bottom_right=(0, 0, 255)))
    explainer = Explainer.load([red_finder])
    for label, hot, cold in ((1, np.s_[:2, :2], np.s_[3:, 3:]), (0, np.s_[6:, 6:], np.s_[:5, :5])):
        heat = explainer.heat_map(photo, label)
        assert heat.shape == (8, 8)
        assert heat.dtype == np.float32
        assert heat[hot] == pytest.approx(1)
        assert heat[cold] == pytest.approx(0)
    # Nothing speaks for dog in what is blue alone.
    assert not explainer.heat_map(png(with_corners(top_left=(0, 0, 255))), 1).any()


def test_several_models_share_a_map_and_bad_input_is_said(red_finder: str, untrained: str) -> None:
    photo = png(with_corners(top_left=(255, 0, 0)))
    both = Explainer.load([red_finder, untrained]).heat_map(photo, 1)
    assert both.shape == (8, 8)
    assert 0 <= both.min() <= both.max() <= 1
    twice = Explainer.load([red_finder, red_finder]).heat_map(photo, 1)
    assert np.array_equal(twice, Explainer.load([red_finder]).heat_map(photo, 1))
    with pytest.raises(CatdogError, match=r"the photo cannot be read: is empty \(0 bytes\)"):
        Explainer.load([red_finder]).heat_map(b"", 1)
    with pytest.raises(UsageError, match=r"holds no bundle\.json"):
        Explainer.load(["/nowhere"])


def test_an_overlay_colours_what_is_hot_and_leaves_what_is_cold() -> None:
    pixels = np.full((80, 120, 3), 90, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:3, :3] = 1
    laid = overlay_heat(pixels, heat)
    assert laid.shape == pixels.shape
    assert laid.dtype == np.uint8
    assert (laid[45:, 70:] == 90).all()
    red, green, blue = laid[5, 5].astype(int)
    assert red > 150 > blue
    assert green > 130  # yellow, the hot end of the scale


def test_the_command_writes_one_picture_or_a_folder(
    red_finder: str, tmp_path: Path, catdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display.out, "width", 200)
    red, blue = (png(with_corners(top_left=colour)) for colour in ((255, 0, 0), (0, 0, 255)))
    files = {"a/rex.png": red, "b/rex.png": blue, "broken.jpg": b"\xff\xd8\xff"}
    pets = write(tmp_path / "pets", files)
    shown = catdog("explain", pets, "--model", red_finder, "--out", tmp_path / "all.png")
    assert shown.code == 0, shown.err
    predicted = json.loads(catdog("predict", pets, "--model", red_finder, "--json").out)["predictions"]
    assert [row["class"] for row in predicted] == ["dog", "cat", None]
    for row in predicted[:2]:
        assert f"{row['probability']:.2%}" in shown.out
    with Image.open(tmp_path / "all.png") as sheet:
        assert sheet.format == "PNG"
    shown = catdog("explain", pets, "--model", red_finder, "--out", tmp_path / "each")
    assert shown.code == 0, shown.err
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == ["rex-2.png", "rex.png"]
    laid = np.asarray(Image.open(tmp_path / "each" / "rex.png")).astype(int)
    assert laid[5, 5, 1] > 100  # the red corner is yellow now
    assert laid[-5, -5].max() < 5
    shown = catdog("explain", pets / "b", "--model", red_finder, "--class", "dog", "--out", tmp_path / "none.png")
    assert "nothing speaks for dog" in shown.out


def test_the_command_refuses_in_one_line(untrained: str, tmp_path: Path, catdog) -> None:
    photo = write(tmp_path, {"a.jpg": jpeg(1), "empty.jpg": b""}) / "a.jpg"
    for arguments, code, message in (
        (["--class", "hamster"], 2, "--class received 'hamster', expected cat or dog"),
        (["--out", photo], 2, "expected the name of a .png file or a folder"),
        (["--out", tmp_path / "x" / "y.png", "--model", "/nowhere"], 2, "holds no bundle.json"),
    ):
        refused = catdog("explain", photo, "--model", untrained, *arguments)
        assert (refused.code, refused.err.count("\n")) == (code, 1), refused.err
        assert message in refused.err
    refused = catdog("explain", tmp_path / "empty.jpg", "--model", untrained, "--out", tmp_path / "y.png")
    assert refused.code == 1
    assert "none of the photos could be read" in refused.err
    assert not (tmp_path / "y.png").exists()
