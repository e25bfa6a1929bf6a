"""The command line: what it offers, how fast it says so, and how it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest

from catdog.data.catalog import Catalog
from catdog.models import registry
from catdog.scoring import ScoreConfig

COMMANDS = {
    "data download": ["--competition"],
    "data prepare": ["--valid-fraction", "--split-seed", "--labels"],
    "data synthesize": ["--train", "--test", "--seed"],
    "data pack": [],
    "data audit": ["--data", "--oof", "--out", "--distance", "--stall-timeout"],
    "data review": ["--audit", "--data", "--out", "--port"],
    "train": [
        "--data", "--arch", "--alpha", "--weights", "--image-size", "--freeze", "--no-freeze", "--epochs",
        "--batch-size", "--learning-rate", "--patience", "--seed", "--workers", "--cpus-per-worker", "--gpu", "--cpu",
        "--name", "--runs", "--resume", "--overwrite", "--dry-run", "--wait", "--stall-timeout",
    ],
    "score": [
        "--model", "--data", "--split", "--out", "--engine", "--batch-size", "--plan", "--max-unreadable", "--wait",
        "--stall-timeout", "--gpus-per-actor",
    ],
    "submission check": ["--data"],
    "serve": [
        "--model", "--pictures", "--host", "--port", "--engine", "--batch-size", "--min-replicas", "--max-replicas",
        "--max-upload", "--max-files", "--max-pixels", "--timeout", "--max-requests", "--gpu", "--cpu", "--wait",
    ],
    "predict": [
        "--model", "--json", "--csv", "--sheet", "--imagenet", "--weights", "--class-names", "--ignore",
        "--allow-private",
    ],
    "explain": ["--model", "--out", "--class", "--ignore", "--allow-private"],
    "submit": ["--message", "--competition", "--yes", "--timeout"],
    "kaggle": ["--name", "--arch", "--recipe", "--weights", "--set", "--source", "--yes", "--no-submit"],
    "models": [],
    "tune": [
        "--data", "--name", "--search", "--grid", "--set", "--asha", "--concurrent", "--runs", "--wait",
        "--stall-timeout",
    ],
    "oof": [],
    "recipes": [],
    "runs": ["--runs", "--json"],
    "doctor": ["--data", "--image-size", "--model", "--runs", "--json"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, catdog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = catdog(*command.split(), "--help")
    assert shown.code == 0
    for option in [*COMMANDS[command], "--address", "--debug", "--help"]:
        assert re.search(rf"{option}\b", shown.out), option


def test_every_command_takes_address_and_debug(catdog) -> None:
    """Also those that have no use for them, so that an alias or a script can add them to any command."""
    shown = catdog("recipes", "--address", "nowhere:6379", "--debug")
    assert shown.code == 0, shown.err
    assert "fine-tune" in shown.out


def test_choices_are_those_of_the_configuration(catdog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = catdog("score", "--help").out
    for name in ("split", "engine"):
        assert "|".join(get_args(ScoreConfig.model_fields[name].annotation)) in shown


def test_score_takes_the_old_name_of_plan(untrained: str, tmp_path: Path, catdog) -> None:
    assert "--explain" not in catdog("score", "--help").out
    for option in ("--plan", "--explain"):
        refused = catdog("score", "--model", untrained, "--data", tmp_path, option)
        assert "is not a prepared data set" in refused.err


COMPLETE = """
import sys
from catdog.__main__ import main
sys.argv[:] = ["catdog"]
try:
    main()
finally:
    print([m for m in ("tensorflow", "keras", "ray") if m in sys.modules])
"""


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("catdog tr", ["train"]),
        ("catdog train --arch mobilenetv", ["mobilenetv2", "mobilenetv3small", "mobilenetv3large"]),
        ("catdog train --recipe li", ["linear-probe", "little-data"]),
        ("catdog train --set augmen", ["augment=", "augmentation="]),
        ("catdog train --resume --name ", ["first", "grid", "second"]),
        ("catdog train --runs others --name ", ["third"]),
        ("catdog score --model runs/s", ["runs/second"]),
        ("catdog score --model others/", ["others/third"]),
        ("catdog score --model absent/", []),
        ("catdog oof ", ["runs/first", "runs/grid", "runs/second"]),
        ("catdog tune --search ", ["gray-grid"]),
        ("catdog score --engine o", ["onnx"]),
    ],
)
def test_bash_completes_names_and_loads_nothing_heavy(typed: str, names: list[str], tmp_path: Path) -> None:
    for mark in ("runs/first/config.json", "runs/second/oof.json", "runs/grid/search.json", "others/third/config.json"):
        (tmp_path / mark).parent.mkdir(parents=True)
        (tmp_path / mark).write_text("{}")
    (tmp_path / "runs" / "notes").mkdir()
    protocol = {"_CATDOG_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    environment = {**os.environ, **protocol, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line for line in done.stdout.splitlines() if line] == [*names, "[]"]


def test_the_version_is_the_installed_one(catdog) -> None:
    assert catdog("--version").out.strip() == f"catdog {metadata.version('catdog')}"


def test_models_lists_the_registry(catdog) -> None:
    shown = catdog("models").out
    assert all(name in shown for name in registry.get_architectures())


def test_python_m_catdog_is_the_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, catdog.cli.main; print([m for m in ('tensorflow', 'keras', 'ray', 'cv2') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    command = [sys.executable, "-m", "catdog", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "submission" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train --data DATA --weights none.h5",
            "--weights received without --arch; .*: mobilenet, vgg16",
        ),
        ("train --data DATA --arch resnet", "--arch received 'resnet', expected one of small_resnet"),
        ("train --data DATA --arch mobilnet", "expected one of .*; did you mean mobilenet\\?$"),
        ("train --data DATA --recipe fine-tunes", "--recipe .*; did you mean fine-tune\\?$"),
        ("train --dta DATA", "No such option: --dta Did you mean '--data'\\?"),
        ("train --data DATA --resume --name fisrt --runs NEAR", "no run 'fisrt' in .*; did you mean first\\?$"),
        ("score --model NEAR/fisrt --data DATA", "train one first; did you mean first\\?$"),
        ("score --model NEAR/first --data DATA", "train one first$"),
        ("oof NEAR/fisrt", "has no oof.parquet; .*; did you mean first\\?$"),
        ("train --data NEAR/fisrt", "is not a prepared data set: .*; did you mean first\\?$"),
        ("tune --data DATA --name x --search grey-grid", "--search .*; did you mean gray-grid\\?$"),
        ("train --data DATA --set augmentation.rotatoin=1", "; did you mean augmentation.rotation\\?$"),
        ("tune --data DATA --name x --grid unit=[1]", "; did you mean units\\?$"),
        ("trian", "No such command 'trian'. Did you mean 'train'\\?"),
        ("train --data DATA --arch mobilenet --weights none.h5", "expected imagenet, none or an existing weights file"),
        ("train --data DATA --freeze --arch small_resnet", "--freeze received, but small_resnet has no backbone"),
        ("train --data DATA --arch vgg16 --alpha 0.5", "only mobilenet has a width multiplier"),
        ("train --data DATA --arch mobilenet --alpha 0.3", "--alpha received 0.3; ImageNet weights exist for 0.25"),
        ("train --data DATA --arch small_resnet --epochs 0", "--epochs received 0, expected at least 1"),
        ("train --data DATA --epochs ten", "'--epochs': .* valid integer"),
        ("train --data DATA --name a/b", "--name received 'a/b', expected a plain folder name"),
        ("train --data DATA --resume", "--resume received without --name"),
        ("train --data DATA --resume --name none --runs RUNS", "there is no run 'none'"),
        ("train --data NOWHERE", "is not a prepared data set"),
        ("train", "Missing option '--data'"),
        ("score --model NOWHERE --data DATA", "holds no bundle.json"),
        (
            "score --model NOWHERE --data DATA --split train",
            "'--split': .*'train' is not one of 'test', 'valid', 'all'",
        ),
        ("score --model MODEL --data DATA --out RUNS", "expected the name of a .csv file"),
        ("score --model MODEL --data DATA --max-unreadable 2", "--max-unreadable received 2"),
        ("nonsense", "No such command 'nonsense'"),
        ("data synthesize RUNS/x --train 1", "received --train 1"),
        ("tune --data DATA --name x --grid nonsense=[1]", "--grid received 'nonsense=.1.', expected NAME=VALUE"),
        ("train --data DATA --set nonsense=1", "--set received 'nonsense=1', expected NAME=VALUE"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    arguments: str, message: str, drawn: Catalog, untrained: str, tmp_path: Path, catdog
) -> None:
    (tmp_path / "near" / "first").mkdir(parents=True)
    places = {
        "NEAR": str(tmp_path / "near"),
        "DATA": drawn.root,
        "MODEL": untrained,
        "NOWHERE": str(tmp_path / "no"),
        "RUNS": str(tmp_path),
    }
    for name, place in places.items():
        arguments = arguments.replace(name, place)
    refused = catdog(*arguments.split())
    assert refused.code == 2, refused.err
    assert refused.err.startswith("catdog: ")
    assert refused.err.count("\n") == 1
    assert re.search(message, refused.err), refused.err


def test_an_output_that_cannot_be_written_is_told_before_anything_is_scored(
    drawn: Catalog, untrained: str, catdog
) -> None:
    refused = catdog("score", "--model", untrained, "--data", drawn.root, "--out", "/proc/x/results.csv")
    assert refused.code == 1
    assert refused.err.startswith("catdog: could not write /proc/x/results.parts/")
    assert refused.err.count("\n") == 1


def test_brackets_in_a_path_are_shown_as_they_are(tmp_path: Path, catdog) -> None:
    made = catdog("data", "synthesize", tmp_path / "cats[old]" / "[/x]", "--train", 4, "--test", 1)
    assert made.code == 0, made.err
    assert f"Data set: {tmp_path}/cats[old]/[/x]\n" in made.out


def test_overwrite_deletes_runs_only(drawn: Catalog, tmp_path: Path, catdog) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    refused = catdog("train", "--data", drawn.root, "--runs", tmp_path, "--name", "thesis", "--overwrite")
    assert refused.code == 2
    assert "is not a run" in refused.err
    assert (tmp_path / "thesis" / "thesis.txt").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "catdog", "submission", "check", "results.csv", "--data", str(tmp_path)]
    quiet = subprocess.run(command, capture_output=True, text=True, check=False)
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stderr
    loud = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert loud.returncode != 0
    assert "Traceback" in loud.stderr
