"""`make demo`: the whole path on drawn pictures, each stage as the command a user would type, on one Ray cluster."""

import json
import sys
import time
from pathlib import Path

from catdog import interruption

STAGES = {
    "draw": "data synthesize data/demo --train 2000 --test 500 --seed 0",
    "train": "train --data data/demo --arch efficientnet_lite0 --image-size 64 --epochs 2 --workers 2 --cpu "
    "--name demo --overwrite",
    "score": "score --model runs/demo --data data/demo --cpu",
    "check": "submission check submissions/results.csv --data data/demo",
}


def _run() -> None:
    from catdog.cli.main import run

    run(main)


def main() -> None:
    """Runs the stages and says how long each took."""
    from catdog import cluster
    from catdog.cli.display import out
    from catdog.cli.main import app

    seconds = {}
    with cluster.connect():
        for stage, command in STAGES.items():
            out.rule(f"catdog {command}", align="left")
            started = time.perf_counter()
            sys.argv[1:] = command.split()
            app(standalone_mode=False)
            seconds[stage] = time.perf_counter() - started
    log_loss = json.loads(Path("submissions/results.report.json").read_text())["log_loss"]
    out.rule("done", align="left")
    out.print("  ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items()))
    out.print(f"Validation log loss {log_loss:.4f}, on pictures that were drawn")
    out.print("Submission: submissions/results.csv   Model: runs/demo/model   Training: runs/demo/report.html")
    out.print("Report: submissions/results.report.html")


if __name__ == "__main__":
    interruption.guard(_run)
