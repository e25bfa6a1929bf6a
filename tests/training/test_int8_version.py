"""Training's int8 version: made once the model is there, found by scoring, and of no harm where it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome

from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.experiments import run_list, tuning
from catdog.inference import bundle, quantised_bundle
from catdog.run_directory import RunDirectory
from catdog.training import page, train
from catdog.training.config import resolve
from catdog.training.request import TrainConfig


@pytest.fixture
def finished(drawn: Catalog, untrained: str, tmp_path: Path) -> TrainConfig:
    """A run that was killed after its model was written, and before the int8 version was."""
    config = TrainConfig(data=drawn.root, arch="small_resnet", image_size=32, runs=str(tmp_path), name="r", int8=True)
    run = RunDirectory(f"{tmp_path}/r")
    options = resolve(config).options()
    run.open({"options": options, "catalog_fingerprint": drawn.fingerprint, "leave_out_sha256": None})
    figures = {"log_loss": 0.7, "accuracy": 0.5, "epoch": 1, "n": 23}
    shutil.copytree(untrained, run.model)
    training = {"options": options, "history": []}
    info = bundle.read_info(untrained).info.model_copy(update={"training": training, "validation": figures})
    Path(run.model, "bundle.json").write_text(info.model_dump_json())
    return config.model_copy(update={"resume": True})


def test_it_is_made_at_the_end_and_found(
    finished: TrainConfig, drawn: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised_bundle, "MOST_CHANGE", 0.1)
    result = train.train_model(finished)
    assert result.int8.startswith(f"kept in {result.run}/model-int8: log loss ")
    assert quantised_bundle.read_bundles([result.run], "int8")[0].uri == f"{result.run}/model-int8"
    assert [run.int8 for run in run_list.list_runs(finished.runs)[0]] == [True]
    assert result.int8.rpartition(" on ")[0] in Path(page.write_train_page(result.run, drawn.root)).read_text()
    # It is there already.
    monkeypatch.setattr(quantised_bundle, "quantise_bundle", None)
    assert train.train_model(finished) == result
    RunDirectory(result.run).open({}, overwrite=True)
    assert not RunDirectory(result.run).has_int8


def test_a_refused_one_costs_no_run(
    catdog: Callable[..., Outcome], finished: TrainConfig, drawn: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised_bundle, "MOST_CHANGE", -1.0)
    again = ("train", "--resume", "--runs", finished.runs, "--name", "r")
    result = catdog(*again)
    assert result.code == 0, result.err
    assert "int8: not kept: on 23 validation photos" in result.out
    run = f"{finished.runs}/r"
    assert not Path(run, "model-int8").exists()
    assert not run_list.list_runs(finished.runs)[0][0].int8
    # It is not tried again, and whoever asks for it hears why.
    monkeypatch.setattr(quantised_bundle, "quantise_bundle", None)
    assert catdog(*again).code == 0
    refused = catdog("score", "--model", run, "--data", drawn.root, "--precision", "int8")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "model-int8 (training did not keep it: on 23 validation photos" in refused.err


def test_a_failure_of_any_kind_costs_no_run(finished: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("too\nmuch")

    monkeypatch.setattr(quantised_bundle, "quantise_bundle", fail)
    assert train.train_model(finished).int8 == "not kept: MemoryError: too"


def test_members_have_none_and_searches_refuse_it(finished: TrainConfig) -> None:
    both = resolve(finished.model_copy(update={"resume": False, "members": [{"seed": 1}, {"seed": 2}]}))
    assert both.validation.int8
    assert not any(member.validation.int8 for member in train.member_configs(both))
    with pytest.raises(UsageError, match="int8 received for a search"):
        tuning.run_search(finished.model_copy(update={"resume": False}), {"seed": [1, 2]})
