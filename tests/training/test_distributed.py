"""Two workers without Ray: what they gather, average and compare, and the validation images that they share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from catdog.training.collectives import free_listener

SCRIPT = """
import json, socket, sys
import numpy as np
from catdog.inference import engines

engines.set_up(1, gpu=False)
import keras
import tensorflow as tf
from catdog.training.collectives import Collectives
from catdog.training.distributed import CommonError, ConnectedGroup, StrategyGroup
from catdog.training.stores import DecodedStore
from catdog.training.validation import Validator

rank, listener, addresses = json.loads(sys.argv[1])
if listener is None:
    group = StrategyGroup(rank, 2)
else:
    group = ConnectedGroup(Collectives(rank, list(map(tuple, addresses)), socket.socket(fileno=listener), b"key"))
found = {
    "gathered": group.gather(np.array([[rank + 0.5], [-1.0]])).tolist(),
    "all": [group.all_true(True), group.all_true(rank == 0)],
}
line = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=True)])
optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=4.0)
optimizer.build(line.trainable_variables)

def step(inputs):
    with tf.GradientTape() as tape:
        loss = optimizer.scale_loss(tf.reduce_sum(line(inputs)))
    gradients = tape.gradient(loss, [variable.value for variable in line.trainable_variables])
    optimizer.apply(group.sum_gradients(gradients), line.trainable_variables)
    return loss

step = tf.function(step, autograph=False)
step(tf.constant([[rank + 1.0, 10.0 * rank]]))
found["stepped"] = [np.asarray(variable).ravel().tolist() for variable in line.weights]
step(tf.constant([[1.0, float("inf") if rank else 1.0]]))
found["left_out"] = [np.asarray(variable).ravel().tolist() for variable in line.weights]
found["scale"] = float(optimizer.dynamic_scale)
model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
found["equal"] = group.require_equal_variables(model)
model.layers[0].moving_mean.assign([rank, 2.0, 4.0 * rank])
try:
    group.require_equal_variables(model)
except CommonError as error:
    found["drifted"] = str(error)
group.average_moving_statistics(model)
found["mean"] = np.asarray(model.layers[0].moving_mean).tolist()
found["equal_again"] = group.require_equal_variables(model)

images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
where = np.array([[0, 0], [0, 1], [0, 2], [-1, -1], [0, 4], [0, 5]])
columns = np.linspace(-1, 2, 8, dtype=np.float32)
predict = lambda batch: tf.reduce_mean(tf.cast(batch, tf.float32) * columns[:, None], axis=[1, 2, 3])[:, None]
validator = Validator(DecodedStore([images], where, [(3, "broken")]), np.array([0, 1] * 3), 0.25, predict, group, 2)
found["logits"] = validator.logits(["identity", "mirror"]).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["connections", "strategy"])
def workers(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of two workers found: those of CPUs, and those of GPUs, which run on the CPU here."""
    listeners = [free_listener("127.0.0.1") for _ in range(2)]
    addresses = [listener.getsockname()[:2] for listener in listeners]
    started = []
    for rank, listener in enumerate(listeners):
        number, environment = listener.fileno(), dict(os.environ)
        if request.param == "strategy":
            number = None
            cluster = {"worker": [f"{host}:{port}" for host, port in addresses]}
            task = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
            environment |= {"TF_CONFIG": json.dumps(task), "no_proxy": "*", "no_grpc_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", SCRIPT, json.dumps([rank, number, addresses])]
        kept = [] if number is None else [number]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=kept, env=environment))
        listener.close()
    try:
        printed = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [json.loads(text.splitlines()[-1]) for text in printed]


def test_arrays_are_gathered_by_rank(workers: list[dict[str, Any]]) -> None:
    for found in workers:
        assert found["gathered"] == [[[0.5], [-1.0]], [[1.5], [-1.0]]]
        assert found["all"] == [True, False]


def test_a_step_applies_the_sum_of_the_gradients(workers: list[dict[str, Any]]) -> None:
    for found in workers:
        # Inputs (1, 0) and (2, 10): the sum of the gradients is (3, 10), and 2 for the bias.
        assert found["stepped"] == [[1 - 0.5 * 3, 1 - 0.5 * 10], [-0.5 * 2]]


def test_all_leave_out_a_step_in_which_the_gradient_of_one_is_infinite(workers: list[dict[str, Any]]) -> None:
    for found in workers:
        assert found["left_out"] == found["stepped"]
        assert found["scale"] == 4.0 / 2


def test_models_that_differ_are_found_and_averaged_statistics_are_equal(workers: list[dict[str, Any]]) -> None:
    for found in workers:
        assert found["equal"][0] == found["equal"][1] != found["equal_again"][0]
        assert found["drifted"].startswith("the workers' models have drifted apart (")
        assert found["mean"] == [0.5, 2.0, 2.0]
        assert found["equal_again"][0] == found["equal_again"][1]


def test_validation_images_are_shared_out_and_come_back_in_order(workers: list[dict[str, Any]]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(float)
    columns = np.linspace(-1, 2, 8)[:, None]
    expected = (images * (columns + columns[::-1]) / 2).mean(axis=(1, 2, 3))
    expected[3] = np.log(0.25 / 0.75)  # it cannot be read
    for found in workers:
        assert found["logits"] == pytest.approx(expected, rel=1e-5)
