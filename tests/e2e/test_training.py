"""Data-parallel training is right: against plain Keras, between workers, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import mlflow
import numpy as np
import psutil
import pytest
from helpers import bundle_json, wait_for_checkpoint, weights

from catdog import rng
from catdog.choices import StoreName
from catdog.data import images, packing, synthetic
from catdog.data.catalog import Catalog
from catdog.events import Event, TrainingStarted
from catdog.models import registry
from catdog.training import train
from catdog.training.request import TrainConfig

SIZE, BATCH, EPOCHS, RATE = 32, 8, 1, 1e-3


def by_plain_keras(data: Catalog) -> list[np.ndarray]:
    """The same steps in one process: Keras's own `train_on_batch`, in the order that seed, epoch and key give."""
    rows = data.split("train")
    pixels = np.stack([images.read_image(uri, SIZE).pixels for uri in rows["uri"].to_pylist()])
    labels = rows["label"].to_numpy().astype(np.float32)
    hashes = rng.key_hash(rows["key"].to_pylist())
    steps = len(labels) // BATCH
    keras.utils.set_random_seed(0)
    model = registry.build_model(registry.ModelSpec("workshop_cnn", SIZE))
    total = steps * EPOCHS
    warm_up = max(1, total // 20)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, total - warm_up, warmup_target=RATE, warmup_steps=warm_up)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    for epoch in range(EPOCHS):
        order = np.argsort(rng.uniform(0, epoch, hashes, 1)[:, 0], kind="stable")
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            model.train_on_batch(pixels[batch], labels[batch, None])
    return [np.asarray(variable) for variable in model.weights]


@pytest.mark.usefixtures("two_cpus")
def test_one_worker_two_workers_and_plain_keras_end_with_the_same_weights(drawn: Catalog, tmp_path: Path) -> None:
    runs = {}
    # A packed set is trained on like the folder that it was made from, and from whichever store.
    packing.pack_dataset(drawn.root, str(tmp_path / "packed"))
    kinds: list[tuple[int, str, StoreName]] = [(1, drawn.root, "encoded"), (2, str(tmp_path / "packed"), "files")]
    for workers, data, store in kinds:
        config = TrainConfig(
            data=data,
            arch="workshop_cnn",
            image_size=SIZE,
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=RATE,
            augment=False,
            workers=workers,
            cpus_per_worker=1,
            store=store,
            shuffle="full",
            name=f"w{workers}",
            runs=str(tmp_path),
        )
        events: list[Event] = []
        result = train.train_model(config, events.append)
        assert [event.workers for event in events if isinstance(event, TrainingStarted)] == [workers]
        runs[workers] = result
    start = registry.build_model(registry.ModelSpec("workshop_cnn", SIZE))
    expected = by_plain_keras(drawn)
    for result in runs.values():
        for ours, theirs, initial in zip(weights(result.run), expected, start.weights, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-5)
            assert not np.allclose(ours, np.asarray(initial), atol=1e-4)
    assert runs[1].validation["log_loss"] == pytest.approx(runs[2].validation["log_loss"], abs=1e-5)


def options(data: Catalog, runs: Path, name: str) -> list[str]:
    more = f"--arch small_resnet --image-size 64 --epochs 4 --batch-size 16 --patience 4 --workers 1 --name {name}"
    return ["train", "--data", data.root, *more.split(), "--cpus-per-worker", "1", "--runs", str(runs)]


def started(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "catdog", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def wait_for_line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start))


def test_ctrl_c_ends_everything_and_says_the_command_that_goes_on(drawn: Catalog, tmp_path: Path) -> None:
    """On a cluster of its own, and without a name: the one that was made up is in the command."""
    small = ("--arch", "small_resnet", "--image-size", 32)
    with started("train", "--data", drawn.root, "--runs", tmp_path / "my runs", *small) as process:
        run = Path(wait_for_line(process, "Run: ").removeprefix("Run: ").strip())
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in children)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == (
        "catdog: interrupted; no epoch was finished; to go on:\n"
        f"  catdog train --resume --name {run.name} --runs '{tmp_path}/my runs'\n"
    )
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_a_killed_run_resumes_to_the_same_weights(two_cpus: str, tmp_path: Path, catdog) -> None:
    """Dropout, batch-norm, augmentation and AdamW's moments must all go on where they were."""
    data = synthetic.synthesize(str(tmp_path / "set"), 160, 0, seed=2)
    uninterrupted = catdog(*options(data, tmp_path, "whole"))
    assert uninterrupted.code == 0

    store = f"file:{tmp_path}/store"
    track = ["--track", f"mlflow:{store}"]
    with started(*options(data, tmp_path, "killed"), *track, "--address", two_cpus) as stopped:
        wait_for_line(stopped, "Run: ")
        refused = catdog("train", "--resume", "--name", "killed", "--runs", tmp_path)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert f"killed is in use: training, process {stopped.pid} on this machine" in refused.err
        wait_for_line(stopped, "epoch ")
        wait_for_checkpoint(str(tmp_path), "killed")
        # As `ray job stop` does; tests/e2e/test_kaggle_path.py ends one that is given no time to say anything.
        stopped.send_signal(signal.SIGTERM)
        _, said = stopped.communicate(timeout=30)
    assert stopped.returncode == 143
    first, command = said.splitlines()
    assert first.startswith("catdog: interrupted; ")
    assert command == f"  catdog train --resume --name killed --runs {tmp_path} {' '.join(track)} --address {two_cpus}"
    end = time.monotonic() + 5
    while workers := [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in one.name()]:
        assert time.monotonic() < end, workers
        time.sleep(0.1)
    assert not (tmp_path / "killed" / "model" / "bundle.json").exists()

    refused = catdog(*options(data, tmp_path, "killed"))
    assert refused.code == 2
    assert "give another name, --resume or --overwrite" in refused.err
    changed = catdog(*options(data, tmp_path, "killed"), "--resume", "--seed", "5")
    assert changed.code == 2
    assert "--resume: run 'killed' was started with --seed 0, received 5" in changed.err
    changed = catdog("train", "--resume", "--name", "killed", "--runs", tmp_path, "--set", "xla=true")
    assert "--resume: run 'killed' was started with --xla False, received True" in changed.err

    # The options of the run are its own, its threads too: none but its name and place need be said again. One that the
    # version which began it did not have yet has its default.
    begun = tmp_path / "killed" / "config.json"
    content = json.loads(begun.read_text())
    del content["options"]["xla"]
    begun.write_text(json.dumps(content))
    short = ["--name", "killed", "--runs", tmp_path, "--resume"]
    resumed = catdog("train", *short, *track)
    assert "Training on 1 worker after epoch" in resumed.out
    assert "epoch   1" not in resumed.out
    whole, continued = bundle_json(str(tmp_path / "whole")), bundle_json(str(tmp_path / "killed"))
    assert [entry["epoch"] for entry in continued["training"]["history"]] == [1, 2, 3, 4]
    for one, other in zip(whole["training"]["history"], continued["training"]["history"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
    # What the epoch was chosen on does not judge it: of all epochs, also of those before the kill.
    honest = whole["validation"]["log_loss_cross_chosen"]
    assert continued["validation"]["log_loss_cross_chosen"] == pytest.approx(honest, abs=1e-5)
    assert min(entry["valid_log_loss"] for entry in whole["training"]["history"]) < honest + 1e-6
    assert (whole["chosen_on"], continued["chosen_on"]) == ("validation", "validation")
    assert f"{honest:.4f} where each half is judged by the epoch that the other chose" in uninterrupted.out
    for ours, theirs in zip(weights(str(tmp_path / "killed")), weights(str(tmp_path / "whole")), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert list((tmp_path / "killed" / "tensorboard").glob("events.out.tfevents.*"))
    assert "epoch 4 of 4" in catdog("train", *short).out

    scored = catdog("score", "--model", tmp_path / "killed", "--data", data.root, "--split", "valid", *track,
                    "--out", tmp_path / "results.csv")  # fmt: skip
    assert scored.code == 0, scored.err
    client = mlflow.MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'catdog'")
    (tracked,) = client.search_runs([experiment.experiment_id])
    number = tracked.info.run_id
    assert {point.step for point in client.get_metric_history(number, "valid_log_loss")} == {1, 2, 3, 4}
    assert tracked.data.metrics["validation.log_loss"] == continued["validation"]["log_loss"]
    assert tracked.data.metrics["scored.valid.log_loss"] > 0
    assert "model/bundle.json" in [file.path for file in client.list_artifacts(number, "model")]
    assert "scores/results.report.json" in [file.path for file in client.list_artifacts(number, "scores")]
