"""Training on GPUs in 16 bits, and by XLA: what is trained, left out, kept, saved and refused; on the CPU here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray.train
import tensorflow as tf

from catdog import rng
from catdog.inference.provenance import Provenance
from catdog.lease import Lease
from catdog.models import surgery
from catdog.resources import TrainPlan
from catdog.training import checkpoint
from catdog.training.checkpoint import Precision, Progress
from catdog.training.config import ResolvedConfig, resolve
from catdog.training.distributed import CommonError, WorkerGroup
from catdog.training.gpu_precision import choose_gpu_precision
from catdog.training.ingest import Batches
from catdog.training.job import SplitData, WorkerJob
from catdog.training.precision import choose_precision
from catdog.training.replica import Replica, build_replica
from catdog.training.request import TrainConfig
from catdog.training.stores import DecodedStore, LoadedImages

COUNT, SIZE = 16, 48
SCRATCH: dict[str, Any] = {"arch": "small_resnet", "weights": "none", "recipe": "plain"}
PRETRAINED: dict[str, Any] = {"arch": "mobilenet", "alpha": 0.25, "weights": "imagenet", "recipe": "fine-tune"}


def config(**options: Any) -> ResolvedConfig:
    given = {"epochs": 30, "batch_size": 8, "image_size": SIZE, "data": "d"}
    return resolve(TrainConfig(**given | (PRETRAINED if "arch" not in options else {}) | options))


def build(config: ResolvedConfig, gpu: bool = True, saved: Precision | None = None) -> tuple[Replica, Batches]:
    """A worker's replica, of random weights that are always the same, and batches of coloured squares."""
    keys, labels = [str(number) for number in range(COUNT)], np.arange(COUNT) % 2
    split = SplitData(LoadedImages([], ray.ObjectRef.nil(), SIZE, "decoded"), keys, labels, np.arange(COUNT))
    nothing = Provenance(), Lease("", "testing"), None
    keras.utils.set_random_seed(3)
    job = WorkerJob(config, TrainPlan(1, 1, gpu), split, split, None, None, 0.5, ("cat", "dog"), "", *nothing, 0.0)
    # Finer noise is grey to deep layers, and batch-norm enlarges what is left of it, and rounding too.
    squares = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    pixels = squares.repeat(config.model.image_size // 4, axis=1).repeat(config.model.image_size // 4, axis=2)
    where = np.stack([np.zeros(COUNT, int), np.arange(COUNT)], axis=1)
    batches = Batches(config, DecodedStore([pixels], where, []), labels, rng.key_hash(keys), np.arange(COUNT), 0, 1)
    return build_replica(job, WorkerGroup(), batches.steps * config.optimizer.epochs, saved), batches


def train(config: ResolvedConfig, replica: Replica, batches: Batches, epochs: list[int]) -> list[float]:
    """Trains for some epochs; returns the loss of each step."""
    step = choose_precision(config, replica, WorkerGroup(), batches, Progress()).step
    return [float(step(batch)) for epoch in epochs for batch in batches.epoch(epoch)]


def bits(*parts: Any) -> list[bytes]:
    return [value.tobytes() for part in parts for value in checkpoint.variable_values(part)]


def first_step(precision: str, **options: Any) -> tuple[Replica, float, np.ndarray]:
    """The loss of the first step, and how it moves the weights: by plain gradient descent, so along the gradient."""
    plain = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "schedule": "constant",
        "warm_up": 0,
        "ema": 0,
        "train_scale": 1.0,
    }
    given = config(**plain, augment=False, label_smoothing=0, precision=precision, **options)
    replica, batches = build(given)
    for layer in surgery.all_layers(replica.model):
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # masks would differ
    if precision == "float16":
        replica.optimizer.dynamic_scale.assign(128.0)  # what noise needs, which is far from what photos do
    before = np.concatenate([np.ravel(variable) for variable in replica.model.trainable_variables])
    step = choose_precision(given, replica, WorkerGroup(), batches, Progress()).step
    loss = float(step(next(batches.epoch(0))))
    after = np.concatenate([np.ravel(variable) for variable in replica.model.trainable_variables])
    return replica, loss, after - before


# With random weights, a deep backbone whose batch-norm stays as it is would be chaotic.
@pytest.mark.parametrize("options", [SCRATCH, PRETRAINED | {"arch": "vgg16", "alpha": None}], ids=["scratch", "tuned"])
def test_a_mixed_step_goes_where_one_in_float32_goes(options: dict[str, Any]) -> None:
    _, expected, exact = first_step("float32", **options)
    # A number is rounded by 2⁻¹² (float16) or 2⁻⁹ (bfloat16) of itself, in each of some twenty layers and back again.
    for precision, near in (("float16", 2**-12), ("bfloat16", 2**-9)):
        replica, loss, moved = first_step(precision, **options)
        assert replica.mixed == precision
        assert loss == pytest.approx(expected, rel=8 * near)
        # Where that puts a ReLU on the other side of its kink, a part of the gradient is another one.
        lengths = np.linalg.norm(moved), np.linalg.norm(exact)
        assert 1 - moved @ exact / lengths[0] / lengths[1] < 64 * near
        assert lengths[0] == pytest.approx(lengths[1], rel=64 * near)
        assert {variable.dtype for variable in replica.model.variables if "seed" not in variable.path} == {"float32"}
        layers = surgery.all_layers(replica.model)
        convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
        assert {layer.output.dtype for layer in convolutions} == {precision}
        assert layers[-1].output.dtype == layers[-1].compute_dtype == "float32"


def test_a_gradient_that_overflows_leaves_the_step_out_and_halves_the_scale() -> None:
    given = config(**SCRATCH | {"arch": "workshop_cnn"}, precision="float16", ema=0.9, label_smoothing=0.1)
    replica, batches = build(given)
    step = choose_precision(given, replica, WorkerGroup(), batches, Progress()).step
    first, second = list(batches.epoch(0))
    optimizer, inner = replica.optimizer, replica.optimizer.inner_optimizer
    optimizer.dynamic_scale.assign(2.0**60)
    before = bits(replica.model, inner)
    told = float(step(first))
    assert bits(replica.model, inner) == before
    assert float(optimizer.dynamic_scale) == 2.0**59
    optimizer.dynamic_scale.assign(2.0**10)
    assert float(step(first)) == pytest.approx(told, rel=1e-3)  # not the scaled one
    float(step(second))
    assert float(optimizer.dynamic_scale) == 2.0**10
    assert int(inner.iterations) == 2
    rate = float(np.asarray(optimizer.learning_rate))
    assert 0 < rate == float(np.asarray(inner.learning_rate))
    moved = bits(replica.model)
    assert all(now != then for now, then in zip(moved, before[: len(moved)], strict=True))


def test_decay_and_rates_by_layer_reach_the_optimizer_that_is_wrapped() -> None:
    options = {"learning_rate": 1e-3, "schedule": "constant", "warm_up": 0, "weight_decay": 100.0, "layer_decay": 0.5}
    given = config(**SCRATCH | {"arch": "workshop_cnn"}, precision="float16", **options)
    replica, batches = build(given)
    layers = [layer for layer in replica.model.layers if layer.weights]
    kernels = [np.array(layer.kernel) for layer in layers]
    for layer in layers:
        layer.bias.assign(np.ones(layer.bias.shape))
    step = choose_precision(given, replica, WorkerGroup(), batches, Progress()).step
    float(step(next(batches.epoch(0))))
    assert len(layers) == 5
    for depth, (layer, kernel) in enumerate(zip(reversed(layers), reversed(kernels), strict=True)):
        # AdamW's first step is the rate, whatever the gradient; a kernel also loses rate times decay of itself.
        rate = 1e-3 * 0.5**depth
        assert np.abs(np.asarray(layer.bias) - 1).max() == pytest.approx(rate, rel=0.01)
        assert np.abs(np.asarray(layer.kernel) - 0.9 * kernel).max() == pytest.approx(rate, rel=0.01)


def test_a_checkpoint_has_the_scale_and_training_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    monkeypatch.setattr(ray.train, "report", lambda _, checkpoint: shutil.copytree(checkpoint.path, folder))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    assert checkpoint.saved_precision() is None
    given = config(**SCRATCH, precision="float16", ema=0.9, mixup=0.4)
    whole, batches = build(given)
    whole.optimizer.dynamic_scale.assign(2.0**60)  # so that the first steps are left out
    train(given, whole, batches, [0])
    assert float(whole.optimizer.dynamic_scale) == 2.0**58
    whole.optimizer.dynamic_scale.assign(2.0**7)
    best = checkpoint.variable_values(whole.model)
    checkpoint.report_checkpoint(Progress(1, precision="float16"), whole.model, whole.optimizer, best, 0)
    train(given, whole, batches, [1])
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(folder))
    going_on = config(**SCRATCH, ema=0.9, mixup=0.4)  # auto
    other, batches = build(going_on, saved=checkpoint.saved_precision())
    checkpoint.restore_checkpoint(other.model, other.optimizer)
    assert other.mixed == "float16"
    assert float(other.optimizer.dynamic_scale) == 2.0**7
    train(going_on, other, batches, [1])
    assert bits(other.model, other.optimizer) == bits(whole.model, whole.optimizer)


def test_what_is_validated_and_saved_is_a_plain_model_with_the_trained_weights(tmp_path: Path) -> None:
    given = config(**SCRATCH, precision="float16", ema=0.5)
    replica, batches = build(given)
    replica.optimizer.dynamic_scale.assign(2.0**7)
    train(given, replica, batches, [0])
    pixels = next(batches.epoch(1))[0]
    with replica.validation_weights():
        replica.validation_model.save(tmp_path / "model.keras")
        logits = np.asarray(replica.predict(pixels))
        low = np.asarray(replica.model(pixels, training=False))
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert {layer.dtype_policy.name for layer in loaded.layers if layer.weights} == {"float32"}
    averages = replica.optimizer.inner_optimizer.variables
    averages = {v.path.split("/")[-1]: np.asarray(v) for v in averages if v.path.endswith("_average")}
    assert len(averages) == len(loaded.trainable_variables)
    for variable in loaded.trainable_variables:
        assert np.array_equal(variable, averages[variable.path.replace("/", "_") + "_average"])
    assert logits == pytest.approx(np.asarray(loaded(pixels, training=False)), abs=1e-6)
    assert 0 < np.abs(low - logits).max() < 0.05


class WithOther(WorkerGroup):
    """This worker, and another one that gathers what is given."""

    size = 2

    def __init__(self, *value: int) -> None:
        self.value = np.array(value)

    def gather(self, value: np.ndarray) -> np.ndarray:
        return np.stack([value, self.value])


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        *(((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((7, 0), "float16"), ((6, 1), "float32")),
        *((None, "float32"), ("no GPU", "float32")),
    ],
)
def test_a_gpu_decides_by_its_tensor_cores(
    capability: Any, expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    details = {"device_name": "A GPU"} | ({"compute_capability": capability} if capability else {})
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [] if capability == "no GPU" else [device])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: details)
    auto = config()
    assert choose_gpu_precision(auto, WorkerGroup(), None) == expected
    # The order is: float32, which every GPU has, float16, bfloat16.
    lowest = sorted([expected, "float16"], key=["float32", "float16", "bfloat16"].index)[0]
    assert choose_gpu_precision(auto, WithOther(1), None) == lowest
    assert choose_gpu_precision(auto, WithOther(0), None) == "float32"
    assert choose_gpu_precision(auto, WorkerGroup(), "bfloat16") == "bfloat16"
    assert choose_gpu_precision(config(precision="float16"), WorkerGroup(), "bfloat16") == "float16"


def test_xla_trains_as_without_it_and_draws_the_same_dropout_each_time() -> None:
    def trained(**options: Any) -> tuple[list[float], Replica]:
        given = config(**SCRATCH | {"image_size": 32, "mixup": 0.4, "ema": 0.9} | options)
        replica, batches = build(given, gpu=False)
        return train(given, replica, batches, [0, 1]), replica

    (plain, without), (compiled, by_xla) = (trained(arch="workshop_cnn", xla=xla) for xla in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-5)
    for ours, theirs in zip(by_xla.model.variables, without.model.variables, strict=True):
        # Adam turns the noise in a gradient of nearly zero into a part of the rate, 1e-3.
        assert np.asarray(ours) == pytest.approx(np.asarray(theirs), abs=1e-4)
    (first, once), (second, again) = (trained(arch="blog_cnn", xla=True) for _ in range(2))
    assert first == second
    assert np.isfinite(first).all()
    assert bits(once.model, once.optimizer) == bits(again.model, again.optimizer)


def test_what_cpus_do_not_train_in_is_refused_in_a_line() -> None:
    def refused(message: str, saved: Precision | None = None, **options: Any) -> None:
        with pytest.raises(CommonError, match=message):
            build(config(**options), gpu=False, saved=saved)

    scratch = "small_resnet as asked for trains on CPUs in float32 only; expected auto or float32, or --gpu"
    refused(f"precision received bfloat16, but {scratch}", **SCRATCH, precision="bfloat16")
    refused(f"precision received float16, but {scratch}", **SCRATCH, precision="float16")
    tuned = "mobilenet as asked for trains on CPUs in float32 or bfloat16 only"
    refused(f"float16, but {tuned}; expected auto, float32 or bfloat16, or --gpu", precision="float16")
    refused(f"--resume: the run began in float16, but {tuned}; resume it with --gpu", "float16")
    assert build(config(), gpu=False, saved="bfloat16")[0].mixed == "float32"
