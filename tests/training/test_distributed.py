"""Two workers without Ray: what they gather, average and compare, and the validation images that they share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

SCRIPT = """
import json, sys
import numpy as np
from catdog.inference import engines

engines.set_up(1, gpu=False)
import keras
import tensorflow as tf
from catdog.training.distributed import CommonError, WorkerGroup
from catdog.training.ingest import Pixels
from catdog.training.validation import Validator

rank = int(sys.argv[1])
group = WorkerGroup(rank, 2)
found = {
    "gathered": group.gather(np.array([[rank + 0.5], [-1.0]])).tolist(),
    "all": [group.all_true(True), group.all_true(rank == 0)],
}
with group.strategy.scope():
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
validator = Validator(Pixels([images], where, [(3, "broken")]), np.array([0, 1] * 3), 0.25, predict, group, 2)
found["logits"] = validator.logits(["identity", "mirror"]).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def workers() -> list[dict[str, Any]]:
    """What each of two workers found."""
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (first, second)]
    started = []
    for rank in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "no_proxy": "*", "no_grpc_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", SCRIPT, str(rank)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
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
