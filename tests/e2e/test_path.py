"""The main path on one cluster: train on two workers, score, report, submission; then what may go wrong on it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers import Outcome, bundle_json, in_process, save_untrained, wait_for_checkpoint
from sklearn import metrics as sklearn_metrics

from catdog.data import catalog, images, packing
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.events import EpochDone, Event, PartDone, ScoringPlanned, TrainingStarted
from catdog.inference import bundle
from catdog.inference.bundle import ModelBundle
from catdog.inference.predictor import Predictor
from catdog.inference.provenance import Provenance
from catdog.reporting import page, render, submission
from catdog.scoring import parts, results, score
from catdog.scoring.config import ScoreConfig
from catdog.training import page as train_page
from catdog.training import train
from catdog.training.request import TrainConfig

pytestmark = pytest.mark.usefixtures("two_cpus")


@pytest.fixture(scope="module")
def own(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A copy of the drawn set with a file that no decoder reads in each split."""
    root = tmp_path_factory.mktemp("own") / "set"
    shutil.copytree(drawn.root, root)
    data = catalog.read_catalog(str(root))
    for split in ("train", "valid", "test"):
        Path(data.split(split)["uri"][0].as_py()).write_bytes(b"")
    return data


@pytest.fixture(scope="module")
def trained(own: Catalog, tmp_path_factory: pytest.TempPathFactory) -> tuple[train.TrainResult, list[Event]]:
    """A batch-normalised model trained on two workers, of which one is killed in the second epoch."""
    events: list[Event] = []
    killed: list[int] = []

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 1 and not killed:
            wait_for_checkpoint(config.runs, "bn")
            pids = [pid for pid, name in processes().items() if "RayTrainWorker" in name]
            assert len(pids) == 2
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])
        events.append(event)

    config = TrainConfig(
        data=own.root, arch="small_resnet", image_size=32, epochs=5, batch_size=16, workers=2, name="bn",
        runs=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return train.train_model(config, watch), events


def processes() -> dict[int, str]:
    """The command line of each process that this one started, directly or not."""
    found, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    own = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= grown
    return {pid: found[pid] for pid in own}


def config_for(run: str, data: Catalog, out: Path, **options: object) -> ScoreConfig:
    return ScoreConfig(model=run, data=data.root, out=str(out), **options)


def test_a_killed_worker_costs_no_epoch(trained: tuple[train.TrainResult, list[Event]]) -> None:
    result, events = trained
    starts = [event for event in events if isinstance(event, TrainingStarted)]
    assert starts[0].epoch == 0
    assert starts[-1].epoch >= 1
    assert len(starts) == 2
    assert [event.epoch for event in events if isinstance(event, EpochDone)][-1] == 5
    assert result.epochs == 5
    assert [line.split(": ")[1] for line in starts[0].rejected] == ["is empty (0 bytes)"] * 2


def test_all_variables_of_both_workers_are_equal_to_the_bit(trained: tuple[train.TrainResult, list[Event]]) -> None:
    kept = bundle_json(trained[0].run)["training"]
    for digests in [*(entry["variables_sha256"] for entry in kept["history"]), kept["variables_sha256"]]:
        assert len(digests) == 2
        assert digests[0] == digests[1]
    assert len({entry["variables_sha256"][0] for entry in kept["history"]}) == 5


@pytest.fixture(scope="module")
def scored(
    trained: tuple[train.TrainResult, list[Event]], own: Catalog, tmp_path_factory: pytest.TempPathFactory
) -> tuple[results.ScoreResult, Path]:
    """Both splits scored, while one test image could not be had, and where the CSV is."""
    gone = Path(own.split("test")["uri"][2].as_py())
    gone.rename(gone.with_suffix(".away"))
    out = tmp_path_factory.mktemp("scored") / "results.csv"
    return score.score_dataset(config_for(trained[0].run, own, out, max_unreadable=0.1)), out


def test_scoring_agrees_with_training_and_with_scikit_learn(
    trained: tuple[train.TrainResult, list[Event]], own: Catalog, scored: tuple[results.ScoreResult, Path]
) -> None:
    result, out = scored
    tmp_path = out.parent
    assert result.too_many_unreadable == []
    report = json.loads((tmp_path / "results.report.json").read_text())
    assert result.report is not None
    assert report == render.json_content(result.report)
    assert result.report.valid is not None
    statuses = result.report.valid.images["status"].to_pylist()
    assert statuses.count("unreadable") == report["unreadable"] == 1
    # No train/score skew: the loop's figure and the job's, for the same weights.
    assert report["log_loss_plain"] == pytest.approx(trained[0].validation["log_loss"], abs=1e-4)
    valid = [row for row in results.read_parts(str(out)).to_pylist() if row["label"] is not None]
    labels, probabilities = ([row[name] for row in valid] for name in ("label", "probability"))
    assert report["n"] == len(valid) == own.count("valid")
    assert report["log_loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), abs=1e-9)
    assert report["log_loss_low"] < report["log_loss"] < report["log_loss_high"]
    assert {"accuracy", "roc_auc", "brier_score", "clip", "bundle_fingerprint", "catalog_fingerprint"} <= set(report)

    assert submission.check_submission(str(out), own).rows == 24
    lines = out.read_text().splitlines()
    assert lines[0] == "id,label"
    assert [line.split(",")[0] for line in lines[1:]] == [str(n) for n in range(1, 25)]
    prior = bundle_json(trained[0].run)["prior"]
    assert float(lines[1].split(",")[1]) == pytest.approx(prior)
    rejected = (tmp_path / "results.rejected.csv").read_text().splitlines()
    assert rejected[0] == "split,id,key,reason"
    assert "test,1,test/1.jpg,is empty (0 bytes)" in rejected
    assert "test,3,test/3.jpg,could not be read: No such file or directory" in rejected
    assert len(rejected) == 4
    meta = json.loads((tmp_path / "results.meta.json").read_text())
    assert meta["catalog_fingerprint"] == own.fingerprint
    assert meta["counts"]["test"] == {"ok": 22, "recovered": 0, "unreadable": 2}

    shown = (tmp_path / "results.report.html").read_bytes()
    assert result.page == str(tmp_path / "results.report.html")
    assert meta["sha256"]["report.html"] == hashlib.sha256(shown).hexdigest()
    assert meta["speed"]["images"] == len(valid) + 24
    assert f"<strong>log loss is\n{report['log_loss']:.4f}</strong>" in shown.decode()
    assert "5 epochs" in shown.decode()
    assert "could not be read: No such file or directory" in shown.decode()


def test_the_page_of_training_says_what_scoring_says(
    trained: tuple[train.TrainResult, list[Event]], own: Catalog, scored: tuple[results.ScoreResult, Path]
) -> None:
    written = Path(train_page.write_train_page(trained[0].run, own.root)).read_text()
    assert scored[0].report is not None
    assert scored[0].report.valid is not None
    assert scored[0].report.valid.judgement is not None
    log_loss = scored[0].report.valid.judgement.figures.log_loss
    found = re.search(r"<strong>log loss is\s([\d.]+)</strong>", written)
    assert found is not None
    assert float(found[1]) == pytest.approx(log_loss, abs=2e-4)
    assert f'{own.split("valid")["key"][0].as_py()}</bdi></td><td class="text"><bdi>is empty (0 bytes)' in written


def test_too_many_unreadable_images_are_written_and_then_told(
    trained: tuple[train.TrainResult, list[Event]],
    own: Catalog,
    scored: tuple[results.ScoreResult, Path],
    catdog: Callable[..., Outcome],
) -> None:
    out = scored[1]
    out.unlink()
    done = catdog("score", "--model", trained[0].run, "--data", own.root, "--out", out)
    assert done.code == 1
    assert "more than 1.00% of the images are unreadable (valid, test)" in done.err
    assert submission.check_submission(str(out), own).rows == 24

    # One split alone, of the same model: what is said of the other one stays.
    before = {name: out.with_name(f"results.{name}").read_text() for name in ("rejected.csv", "report.json")}
    assert "test/3.jpg" in before["rejected.csv"]
    score.score_dataset(config_for(trained[0].run, own, out, split="valid", max_unreadable=0.1))
    assert before == {name: out.with_name(f"results.{name}").read_text() for name in before}

    # What the storage did not give then is scored once it is back, by the same command.
    gone = Path(own.split("test")["uri"][2].as_py())
    gone.with_suffix(".away").rename(gone)
    score.score_dataset(config_for(trained[0].run, own, out, max_unreadable=0.1))
    assert "test/3.jpg" not in out.with_name("results.rejected.csv").read_text()


def test_lost_and_damaged_parts_are_made_again_and_the_csv_is_byte_equal(
    drawn: Catalog, untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catdog: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    out = tmp_path / "results.csv"
    config = config_for(untrained, drawn, out, split="test", batch_size=1)
    score.score_dataset(config)
    first = out.read_bytes()
    files = sorted((tmp_path / "results.parts").iterdir())
    # Two parts of four rows, and sixteen of one: the last parts of a split are small.
    assert len(files) == 18
    kept = files[1].stat().st_mtime_ns
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-40])
    events: list[Event] = []
    score.score_dataset(config, events.append)
    assert events[0] == ScoringPlanned(actors=2, parts=2, kept=16, images=5)
    assert [type(event) for event in events[1:]] == [PartDone, PartDone]
    assert out.read_bytes() == first
    shown = out.with_suffix(".report.html").read_bytes()
    score.score_dataset(config)
    assert out.with_suffix(".report.html").read_bytes() == shown
    # A page that cannot be made costs nothing else, and no old one is left that would speak of other predictions.
    with monkeypatch.context() as patched:
        patched.setattr(page, "render_page", lambda _source: 1 / 0)
        done = catdog(
            "score", "--model", untrained, "--data", drawn.root, "--out", out, "--split", "test", "--batch-size", "1"
        )
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "no report.html: ZeroDivisionError: division by zero; everything else is written" in done.err
    assert not out.with_suffix(".report.html").exists()
    assert submission.check_submission(str(out), drawn) == submission.Checked(24)
    assert files[1].stat().st_mtime_ns == kept
    keys = [
        key for part in sorted((tmp_path / "results.parts").iterdir()) for key in pq.read_table(part)["key"].to_pylist()
    ]
    assert len(keys) == len(set(keys)) == 24

    # Another model under the same name: it may not leave a mixed set, and nothing of the old one stays.
    other = str(tmp_path / "other")
    save_untrained(other, drawn, temperature=3.0)
    with pytest.raises(UsageError, match=r"results.csv is of another model, data set or --batch-size"):
        score.score_dataset(config_for(other, drawn, out, split="valid"))
    assert out.read_bytes() == first
    before = {ending: out.with_suffix(ending).read_bytes() for ending in (".csv", ".meta.json")}
    score.score_dataset(config_for(other, drawn, out, split="test"))
    assert out.read_bytes() != first
    assert not set(files) & set((tmp_path / "results.parts").iterdir())

    # What a kill before meta.json leaves, and then what another run of the first model beside this one would: each is
    # told and not sent, nothing is added to it, and the same command mends it from the parts that are there.
    for ending, content in before.items():
        out.with_suffix(ending).write_bytes(content)
        for command in (("submission", "check"), ("submit", "-m", "first")):
            refused = catdog(*command, out, "--data", drawn.root)
            assert (refused.code, refused.err.count("\n")) == (1, 1)
            assert f"{out} is not the file that results.meta.json was written for" in refused.err
            assert "run the same `catdog score` again" in refused.err
        with pytest.raises(UsageError, match=r"results.csv is .* of a run that was killed"):
            score.score_dataset(config_for(other, drawn, out, split="valid"))
        score.score_dataset(config_for(other, drawn, out, split="test"))
        assert submission.check_submission(str(out), drawn) == submission.Checked(24)
    # The other files of the set count as well; one that was taken away is told.
    rejected = out.with_suffix(".rejected.csv")
    rejected.rename(tmp_path / "away")
    assert "results.rejected.csv too, which is gone" in submission.check_submission(str(out), drawn).warnings[0]
    rejected.write_text("split,id,key,reason\ntest,1,test/1.jpg,is empty\n")
    with pytest.raises(CatdogError, match=r"results.rejected.csv is not the file"):
        submission.check_submission(str(out), drawn)


def test_an_actor_that_dies_costs_its_part_and_nothing_else(
    drawn: Catalog, untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    killed = []

    def watch(event: Event) -> None:
        if isinstance(event, PartDone) and not killed:
            killed.append(next(pid for pid, name in processes().items() if "MapWorker" in name))
            os.kill(killed[0], signal.SIGKILL)

    out = tmp_path / "results.csv"
    score.score_dataset(config_for(untrained, drawn, out, split="test"), watch)
    assert killed
    bundle = ModelBundle.load(untrained)
    pixels = np.stack([images.read_image(uri, 32).pixels for uri in drawn.split("test")["uri"].to_pylist()])
    expected = bundle.probabilities(bundle.logits(pixels))
    written = [float(line.split(",")[1]) for line in out.read_text().splitlines()[1:]]
    assert written == pytest.approx(expected, abs=1e-6)
    assert submission.check_submission(str(out), drawn).rows == 24


def test_engines_agree_and_a_packed_set_gives_the_same_bytes(
    drawn: Catalog, untrained: str, tmp_path: Path, catdog: Callable[..., Outcome]
) -> None:
    outs = {engine: tmp_path / engine / "results.csv" for engine in ("auto", "tensorflow", "packed")}
    packing.pack_dataset(drawn.root, str(tmp_path / "packed"))
    for name, out in outs.items():
        data = tmp_path / "packed" if name == "packed" else drawn.root
        more = ["--engine", "tensorflow"] if name == "tensorflow" else []
        assert catdog("score", "--model", untrained, "--data", data, "--out", out, *more).code == 0
    assert outs["packed"].read_bytes() == outs["auto"].read_bytes()
    tables = {name: results.read_parts(str(out)).sort_by("key") for name, out in outs.items()}
    assert tables["auto"]["logit"].to_numpy() == pytest.approx(tables["tensorflow"]["logit"].to_numpy(), abs=1e-4)
    # The bytes of a file give the predictor what the job has written, to the last bit: alone, and among others.
    rows = drawn.table.filter(pc.is_in(drawn.table["split"], pa.array(["valid", "test"]))).sort_by("key")
    files: list[bytes | str] = [Path(uri).read_bytes() for uri in rows["uri"].to_pylist()]
    predictor = Predictor.load([untrained])
    alone = [predictor.predict_files([data]) for data in files]
    assert tables["auto"]["key"].equals(rows["key"])
    assert tables["auto"]["logit"].to_pylist() == [float(found.logits[0]) for found in alone]
    assert tables["auto"]["probability"].to_pylist() == [found.probabilities[0] for found in alone]
    assert tables["auto"]["logit"].to_pylist() == predictor.predict_files(files).logits.tolist()
    # TensorFlow's last bits may follow from the batch's shape and the threads; here it has those of this process.
    predictor = Predictor.load([untrained], "tensorflow", batch_size=64)
    found = predictor.predict_files(files).logits
    assert tables["tensorflow"]["logit"].to_numpy() == pytest.approx(found, abs=1e-6)
    engines = {name: json.loads((tmp_path / name / "results.meta.json").read_text())["engine"] for name in outs}
    assert engines == {"auto": "onnx", "tensorflow": "tensorflow", "packed": "onnx"}
    # What TensorFlow began, TensorFlow has finished: nothing is done again.
    events: list[Event] = []
    score.score_dataset(config_for(untrained, drawn, outs["tensorflow"]), events.append)
    assert events == []
    # One split again with the other engine: the set of files still speaks of both.
    for part in outs["tensorflow"].with_suffix(".parts").glob("valid-*"):
        shutil.copy(part, outs["auto"].with_suffix(".parts"))
    score.score_dataset(config_for(untrained, drawn, outs["auto"], split="valid", engine="tensorflow"), events.append)
    assert events == []
    counts = json.loads((tmp_path / "auto" / "results.meta.json").read_text())["counts"]
    assert (sum(counts["valid"].values()), sum(counts["test"].values())) == (drawn.count("valid"), 24)
    assert submission.check_submission(str(outs["auto"]), drawn) == submission.Checked(24)
    assert outs["packed"].read_bytes() == outs["auto"].read_bytes()
    assert len(results.read_parts(str(outs["auto"]))) == drawn.count("valid") + 24

    explained = catdog("score", "--model", untrained, "--data", drawn.root, "--out", tmp_path / "new.csv", "--plan")
    assert "engine    onnx: the fastest on CPUs" in explained.out
    assert "actors    2: one a CPU" in explained.out
    assert "2, of which 2 are to be made" in explained.out
    assert re.search(r"measured  [\d,]+ images/s read, decoded and predicted in 1 views", explained.out)
    assert re.search(r"time      about \d:\d\d, an estimate: ", explained.out)
    assert not (tmp_path / "new.csv").exists()
    explained = catdog("score", "--model", untrained, "--data", drawn.root, "--out", outs["packed"], "--explain")
    assert "all are there" in explained.out


def test_images_that_the_model_was_trained_on_judge_nothing(
    drawn: Catalog, tmp_path: Path, catdog: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(catalog.ALLOW_OUTSIDE, "1")
    train, valid = drawn.split("train"), drawn.split("valid")
    model = str(tmp_path / "model")
    save_untrained(model, drawn, provenance=Provenance.of(train, valid))
    # Prepared anew: ten of its training photos are for validation now, and twelve are a labelled test split.
    rows = [*train.to_pylist()[:22], *valid.to_pylist()]
    for number, row in enumerate(rows):
        row["split"] = "test" if number < 12 else "valid"
    anew = Catalog(pa.Table.from_pylist(rows, schema=catalog.SCHEMA), drawn.class_names, str(tmp_path / "anew"))
    anew.write()
    out = tmp_path / "results.csv"
    done = catdog("score", "--model", model, "--data", anew.root, "--out", out)
    assert done.code == 0, done.err
    said = " ".join(done.out.replace("│", " ").split())
    assert f"10 of {10 + len(valid)} images were trained on" in said
    assert "all 12 images were trained on" in said
    assert "nothing is left to judge the model by" in said
    report = json.loads((tmp_path / "results.report.json").read_text())
    table = results.read_parts(str(out)).to_pylist()
    fresh = [row for row in table if row["key"] in valid["key"].to_pylist()]
    labels, probabilities = ([row[name] for row in fresh] for name in ("label", "probability"))
    assert report["n"] == len(valid) == len(fresh)
    assert report["log_loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), abs=1e-9)
    assert (report["trained_on"]["n"], report["test"]["n"], report["test"]["trained_on"]["n"]) == (10, 0, 12)
    assert submission.check_submission(str(out), anew).rows == 12
    assert json.loads((tmp_path / "results.meta.json").read_text())["positive_class"] == drawn.class_names[1]


def test_a_damaged_model_is_found_before_actors_start(
    drawn: Catalog, tmp_path: Path, catdog: Callable[..., Outcome]
) -> None:
    model = tmp_path / "model"
    save_untrained(str(model), drawn)
    os.truncate(model / "model.onnx", 1000)
    outcome = catdog("score", "--model", model, "--data", drawn.root, "--out", tmp_path / "results.csv")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "model.onnx is not the file that bundle.json was written for" in outcome.err
    # What predicts here is whole.
    saved = bundle.read_info(str(model))
    bundle.require_intact(saved, "tensorflow")
    (model / "model.keras").unlink()
    with pytest.raises(CatdogError, match="could not read the bundle's .*model.keras"):
        bundle.require_intact(saved, "tensorflow")


SCORED_ON = """
import json, sys, ray
from catdog.scoring import parts, score
parts.PART_ROWS = 4
actors = []
for cpus, gpus, jobs in CLUSTERS:
    ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    for data, out in jobs:
        events = []
        score.score_dataset(score.ScoreConfig(model=MODEL, data=data, out=out), events.append)
        actors.append(events[0].actors)
    ray.shutdown()
assert "tensorflow" not in sys.modules  # which takes seconds to import, and the driver has no use for it
print(json.dumps(actors))
"""


def test_no_cluster_starves(drawn: Catalog, untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to four CPUs, and a GPU that two read ahead for; splits that sets may have.

    Ray only counts the GPU: TensorFlow finds none and predicts on the CPU, which is all the same to the plan.
    """
    monkeypatch.setenv(catalog.ALLOW_OUTSIDE, "1")
    rows = drawn.table.to_pylist()
    for number, row in enumerate(rows):
        row["label"] = number % 2 if row["split"] == "test" else row["label"]
    table = pa.Table.from_pylist(rows, schema=catalog.SCHEMA)
    labelled = Catalog(table, drawn.class_names, str(tmp_path / "labelled"), drawn.options)
    labelled.write()
    without = drawn.table.filter(np.array(drawn.table["split"].to_pylist()) != "test")
    bare = Catalog(without, drawn.class_names, str(tmp_path / "bare"), drawn.options)
    bare.write()
    outs = {name: tmp_path / name / "results.csv" for name in ("one", "bare", "gpu", "four")}
    clusters = [
        (1, 0, [(labelled.root, str(outs["one"])), (bare.root, str(outs["bare"]))]),
        (2, 1, [(drawn.root, str(outs["gpu"]))]),
        (4, 0, [(labelled.root, str(outs["four"]))]),
    ]
    printed = in_process(f"CLUSTERS, MODEL = {clusters!r}, {untrained!r}\n{SCORED_ON}", timeout=240)
    assert json.loads(printed.splitlines()[-1]) == [1, 1, 1, 4]

    def report(name: str) -> dict:
        return json.loads(outs[name].with_name("results.report.json").read_text())

    assert not outs["bare"].exists()
    assert report("bare")["n"] == drawn.count("valid")
    with pytest.raises(CatdogError, match="has no test images"):
        score.score_dataset(config_for(untrained, bare, outs["bare"], split="test"))
    assert report("four")["n"] == drawn.count("valid")
    # One actor or four, to the last bit.
    assert outs["one"].read_bytes() == outs["four"].read_bytes()
    assert report("four")["test"]["n"] == submission.check_submission(str(outs["four"]), labelled).rows == 24
    assert json.loads(outs["gpu"].with_name("results.meta.json").read_text())["engine"] == "tensorflow"
    loaded = ModelBundle.load(untrained, "tensorflow")
    pixels = np.stack([images.read_image(uri, 32).pixels for uri in drawn.split("test")["uri"].to_pylist()])
    written = [float(line.split(",")[1]) for line in outs["gpu"].read_text().splitlines()[1:]]
    assert written == pytest.approx(loaded.probabilities(loaded.logits(pixels)), abs=1e-6)
