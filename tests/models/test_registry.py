"""The registry: sizes known from elsewhere, preprocessing inside, weights from files, loading without catdog."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import SHARED

from catdog.errors import CatdogError, UsageError
from catdog.models import pretrained, registry, surgery, weight_files
from catdog.models.registry import ModelSpec
from catdog.training import optimizers
from catdog.training.config import resolve
from catdog.training.request import TrainConfig


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_workshop_cnn_has_the_workshops_parameters() -> None:
    assert registry.build_model(ModelSpec("workshop_cnn", 150)).count_params() == 4_791_809


def test_blog_cnn_is_the_blogs() -> None:
    model = registry.build_model(ModelSpec("blog_cnn", 150))
    # Convolutions 3·32, 32·32, 32·64 of 3×3 with biases; 17·17·64 → 64 → 1.
    assert model.count_params() == (27 * 32 + 32) + (288 * 32 + 32) + (288 * 64 + 64) + (18496 * 64 + 64) + 65
    kinds = [type(layer).__name__ for layer in model.layers if layer.count_params() or "Drop" in type(layer).__name__]
    assert kinds == ["Conv2D"] * 3 + ["Dense", "Dropout", "Dense"]


def test_vgg16_has_the_workshops_parameters_and_trains_its_head_only() -> None:
    model = registry.build_model(ModelSpec("vgg16", 150, freeze=True))
    assert model.count_params() == 16_812_353
    assert trainable(model) == 2_097_665


def test_vgg16_top_trains_one_layer_of_the_whole_vgg16(tmp_path: Path) -> None:
    # The parameters of Keras's VGG16 with its top, less its 1,000 outputs, and a logit for them. A quarter of them is
    # here: what the first dense layer is given are the pixels of one position, not of 7×7 as at the size of the
    # published weights.
    assert registry.get_architecture("vgg16_top").image_size == 224
    keras.utils.set_random_seed(5)
    whole = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3))
    path = tmp_path / "vgg16.weights.h5"
    whole.save_weights(path)
    model = registry.build_model(ModelSpec("vgg16_top", 32, freeze=True, pretrained=True), path.read_bytes())
    assert model.count_params() == whole.count_params() - 4097 * 1000 + 4097
    assert trainable(model) == 4097
    assert sum(isinstance(layer, keras.layers.Dropout) for layer in model.get_layer("backbone").layers) == 2
    assert np.array_equal(model.get_layer("backbone").get_layer("fc2").kernel, whole.get_layer("fc2").kernel)
    assert changed_by_a_step("fastai-vgg16", model) == {"logit"}


def changed_by_a_step(recipe: str, model: keras.Model) -> set[str]:
    """The layers whose weights one training step of a recipe changes."""
    config = resolve(TrainConfig(data="d", recipe=recipe, weights="none"))
    optimizer = optimizers.build_optimizer(config, model, 10)
    optimizer.build(model.trainable_variables)
    before = [np.asarray(variable).copy() for variable in model.variables]
    batch = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:]), dtype=np.uint8)
    with tf.GradientTape() as tape:
        logits = surgery.forward_in_inference_mode(model, batch)[:, 0]
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=[0.0, 1.0], logits=logits))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    optimizer.apply(gradients, model.trainable_variables)
    assert np.isfinite(loss)
    pairs = zip(model.variables, before, strict=True)
    moved = [v for v, value in pairs if not np.array_equal(np.asarray(v), value)]
    return {name for name in (v.path.split("/")[-2] for v in moved) if not name.startswith("seed_generator")}


@pytest.mark.parametrize(
    ("recipe", "below"),
    [("workshop-vgg16", set()), ("little-data", {"block5_conv1", "block5_conv2", "block5_conv3"})],
)
def test_a_step_of_vgg16s_recipes_trains_the_head_and_what_else_they_say(recipe: str, below: set[str]) -> None:
    config = resolve(TrainConfig(data="d", recipe=recipe, weights="none", image_size=48))
    model = registry.build_model(config.model.spec)
    assert changed_by_a_step(recipe, model) == below | {
        layer.name for layer in surgery.head_layers(model) if layer.weights
    }


def test_gray_cnn_is_the_grids() -> None:
    model = registry.build_model(ModelSpec("gray_cnn", 64, conv_layers=2, units=32, dense_layers=1))
    kinds = [type(layer).__name__ for layer in model.layers if layer.count_params()]
    assert kinds == ["Conv2D", "Conv2D", "Dense", "Dense"]
    # Grey in: the first convolution has one channel. 14·14·32 pixels reach the dense layer.
    assert model.count_params() == (9 * 32 + 32) + (9 * 32 * 32 + 32) + (14 * 14 * 32 * 32 + 32) + 33


def test_only_the_upper_layers_are_trained() -> None:
    model = registry.build_model(ModelSpec("mobilenet", 64, 0.25, pretrained=True, trainable_from="conv_dw_13"))
    paths = {variable.path.split("/")[-2] for variable in model.trainable_variables}
    assert paths == {"conv_dw_13", "conv_dw_13_bn", "conv_pw_13", "conv_pw_13_bn", "logit"}
    with pytest.raises(CatdogError, match="trainable_from received 'block99', expected a layer of mobilenet"):
        registry.build_model(ModelSpec("mobilenet", 64, 0.25, trainable_from="block99"))


@pytest.mark.parametrize("name", ["mobilenet", "vgg16", "densenet121"])
def test_training_leaves_a_pretrained_backbones_batch_norm_alone(name: str) -> None:
    model = registry.build_model(ModelSpec(name, 64, pretrained=True, dropout=0.0))
    batch = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    before = [np.asarray(variable).copy() for variable in model.variables]
    assert np.asarray(surgery.forward_in_inference_mode(model, batch)) == pytest.approx(
        np.asarray(model(batch, training=False)), abs=1e-5
    )
    for variable, value in zip(model.variables, before, strict=True):
        assert np.array_equal(np.asarray(variable), value)


def one_of_each_kind() -> list[str]:
    """Each architecture of our own, and the first from each module of `keras.applications`.

    The others of a module have the same layers, more or wider ones: mobilenetv3large, efficientnetv2b1 to b3 and s,
    convnextsmall, vgg16_top.
    """
    kinds: dict[str, str] = {}
    for arch in registry.get_architectures().values():
        application = pretrained.find_application(arch.application)[0] if arch.application else None
        kinds.setdefault(application.__module__ if application else arch.name, arch.name)
    return list(kinds.values())


LOADER = """
import sys, numpy as np, keras
sys.modules['catdog'] = None
batch = np.load('batch.npy')
for name in map(str.strip, sys.stdin):
    model = keras.saving.load_model(f'{name}.keras', safe_mode=True)
    np.save(name, np.asarray(model(batch, training=False)))
"""


def test_every_kind_of_model_takes_uint8_gives_one_logit_and_loads_without_catdog(tmp_path: Path) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (2, 72, 72, 3), dtype=np.uint8)
    np.save(tmp_path / "batch.npy", batch)
    expected = {}
    command = [sys.executable, "-c", LOADER]
    # One process loads while the other still builds.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path) as loader:
        assert loader.stdin is not None
        for name in one_of_each_kind():
            model = registry.build_model(ModelSpec(name, 72, alpha=0.25 if name == "mobilenet" else 1.0))
            expected[name] = np.asarray(model(batch, training=False))
            assert model.input_shape == (None, 72, 72, 3)
            assert model.inputs[0].dtype == "uint8"
            assert expected[name].shape == (2, 1)
            model.save(tmp_path / f"{name}.keras")
            loader.stdin.write(f"{name}\n")
            loader.stdin.flush()
        loader.stdin.close()
        assert loader.wait(timeout=240) == 0
    for name, logits in expected.items():
        assert np.load(tmp_path / f"{name}.npy") == pytest.approx(logits, abs=1e-5)
    # Built here, with the file's weights and nothing else of it; tests/stress has all others.
    for name in ("small_resnet", "mobilenet"):
        spec = ModelSpec(name, 72, alpha=0.25 if name == "mobilenet" else 1.0)
        data = (tmp_path / f"{name}.keras").read_bytes()
        rebuilt = weight_files.load_saved_model(functools.partial(registry.build_model, spec), data)
        assert np.array_equal(np.asarray(rebuilt(batch, training=False)), expected[name])


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenet", "mobilenet"), ("vgg16", "vgg16"), ("mobilenetv2", "mobilenet_v2"), ("xception", "xception"),
        ("resnet50v2", "resnet_v2"), ("densenet121", "densenet"), ("efficientnetv2b0", "efficientnet_v2"),
        ("mobilenetv3small", "mobilenet_v3"), ("convnexttiny", "convnext"),
    ],
)  # fmt: skip
def test_preprocessing_is_keras_own(name: str, module: str) -> None:
    model = registry.build_model(ModelSpec(name, 72))
    backbone = model.get_layer("backbone")
    batch = np.random.default_rng(0).integers(0, 256, (2, 72, 72, 3), dtype=np.uint8)
    before = keras.Model(model.inputs, backbone._inbound_nodes[-1].input_tensors[0])
    expected = getattr(keras.applications, module).preprocess_input(batch.astype(np.float32))
    assert np.asarray(before(batch)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("layout", ["weights.h5", "h5"])
def test_weights_from_a_file(layout: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    source = keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, include_top=False, weights=None)
    path = tmp_path / "backbone.weights.h5"
    if layout == "h5":
        published = SHARED / "weights" / "mobilenet_2_5_224_tf_no_top.h5"
        if not published.exists():
            pytest.skip("the published weights are not here")
        source.load_weights(published)
        path = published
    else:
        source.save_weights(path)
    model = registry.build_model(ModelSpec("mobilenet", 64, 0.25, freeze=True, pretrained=True), path.read_bytes())
    for ours, theirs in zip(model.get_layer("backbone").variables, source.variables, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert trainable(model) == 257


def test_the_larger_shared_weights_load() -> None:
    path = SHARED / "weights" / "mobilenet_1_0_224_no_top_block13_identity.weights.h5"
    if not path.exists():
        pytest.skip("the published weights are not here")
    model = registry.build_model(ModelSpec("mobilenet", 64, 1.0, freeze=True, pretrained=True), path.read_bytes())
    assert trainable(model) == 1025


def test_weights_that_do_not_fit_say_so(tmp_path: Path) -> None:
    small = keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, include_top=False, weights=None)
    small.save_weights(tmp_path / "s.weights.h5")
    with pytest.raises(CatdogError, match=r"--weights does not fit mobilenet with --alpha 0.5: "):
        registry.build_model(ModelSpec("mobilenet", 64, 0.5, pretrained=True), (tmp_path / "s.weights.h5").read_bytes())
    with pytest.raises(CatdogError, match="--weights does not fit vgg16"):
        registry.build_model(ModelSpec("vgg16", 64, pretrained=True), b"no weights at all")


def test_a_download_that_fails_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_arguments: object, **_options: object) -> None:
        raise Exception("URL fetch failure on https://example.org/x.h5: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(CatdogError, match=r"could not download .* of mobilenet .*URL fetch failure.* --weights PATH"):
        pretrained.download_imagenet(ModelSpec("mobilenet", 224, 0.25))


def test_unknown_names_and_sizes_are_one_line() -> None:
    with pytest.raises(UsageError, match="'resnet', expected one of small_resnet, blog_cnn"):
        registry.get_architecture("resnet")
    with pytest.raises(CatdogError, match="blog_cnn cannot be built with --image-size 16"):
        registry.build_model(ModelSpec("blog_cnn", 16))
