"""Training that is killed within an epoch goes on from a checkpoint there, and every store gives equal bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import bundle_json

from catdog.data import packing, synthetic
from catdog.events import Event, StepDone, TrainingStarted
from catdog.training import train
from catdog.training.request import TrainConfig


def kill_a_worker() -> None:
    found = [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in one.name()]
    found[-1].kill()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("two_cpus")
def test_a_worker_killed_within_an_epoch(workers: int, tmp_path: Path) -> None:
    """Each worker's batch-norm has statistics of its own there."""
    data = synthetic.synthesize(str(tmp_path / "set"), 800, 0, seed=2)
    options: dict[str, Any] = {
        "data": data.root, "arch": "small_resnet", "image_size": 48, "epochs": 2, "batch_size": 8, "workers": workers,
        "cpus_per_worker": 1, "runs": str(tmp_path),
    }  # fmt: skip
    whole = train.train_model(TrainConfig(**options, name="whole"))
    events: list[Event] = []
    killed = []

    def tell(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step > 40 and not killed:
            killed.append(event)
            kill_a_worker()

    result = train.train_model(TrainConfig(**options, name="killed", checkpoint_minutes=0), tell)
    starts = [event for event in events if isinstance(event, TrainingStarted)]
    assert len(starts) == 2
    assert starts[1].epoch == 0
    assert 0 < starts[1].step < 100
    ours, theirs = (bundle_json(run)["training"]["history"] for run in (result.run, whole.run))
    for one, other in zip(ours, theirs, strict=True):
        for same in ("variables_sha256", "loss", "valid_log_loss"):
            assert one[same] == other[same]


@pytest.mark.usefixtures("two_cpus")
def test_every_store_and_both_orders(tmp_path: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 3000, 0, seed=2)
    packing.pack_dataset(data.root, str(tmp_path / "packed"))
    found: dict[str, set[str]] = {"full": set(), "blocks": set()}
    for store, place, shuffle in (
        *(("decoded", "set", "full"), ("encoded", "set", "full"), ("files", "set", None)),
        *(("decoded", "packed", "blocks"), ("encoded", "set", "blocks"), ("files", "packed", None)),
    ):
        options = {"store": store, "shuffle": shuffle, "runs": str(tmp_path), "name": f"{store}-{place}-{shuffle}"}
        config = TrainConfig(
            data=str(tmp_path / place), arch="workshop_cnn", image_size=32, epochs=1, workers=1, **options
        )
        training = bundle_json(train.train_model(config).run)["training"]
        found[training["options"]["shuffle"]] |= {*training["variables_sha256"]}
    assert [len(each) for each in found.values()] == [1, 1]
    assert found["full"] != found["blocks"]


@pytest.mark.usefixtures("two_cpus")
def test_a_file_that_vanishes_ends_the_run_with_its_name(tmp_path: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 200, 0, seed=2)
    gone = Path(data.split("train")["uri"][3].as_py())

    def tell(event: Event) -> None:
        if isinstance(event, TrainingStarted) and gone.exists():
            gone.unlink()

    config = TrainConfig(data=data.root, arch="workshop_cnn", image_size=32, epochs=50, workers=1, store="files",
                         runs=str(tmp_path), name="gone")  # fmt: skip
    with pytest.raises(Exception, match=f"{gone} could be read when the run began, and cannot any more"):
        train.train_model(config, tell)
