"""What `kill -9` at random moments of real runs costs: every kind of process, and a table of what became of the runs.

    python benchmarks/reliability.py stress                           # every kind, at most 40 minutes
    python benchmarks/reliability.py stress --kinds score-actor --tries 5 --seed 7

A try runs a command, kills one of its processes by its id at a moment drawn by seed and number of the try, and runs the
command again if it died of that (of training: with `--resume`). It survived if the results are those of a run that
nobody disturbed: the bytes of the CSV, of the report and of the list of unreadable images, or the SHA-256 of all
variables of the model. The clusters are started here.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import clusters
import typer
import works
from clusters import Head, Machine
from works import EPOCHS, Work

from catdog.data import catalog

QUIET = {
    catalog.ALLOW_OUTSIDE: "1",  # the images are some of another set, many times
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_prestart_worker_first_driver": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # A lost node is noticed within seconds rather than half a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
TITLE = """# Reliability

Printed by `make stress`, or by `python benchmarks/reliability.py stress`, on two CPU cores. Each try kills a process of
a real run with `kill -9` at a moment drawn by its seed; a command that died of it was run once more, as a user would.
It *survived* if the results are those of an undisturbed run: the bytes of the CSV, in which every id is once, of the
report and of the list of unreadable images, and no other file beside them; or the SHA-256 of all variables after each
epoch and in the model. It *hung* if it was not done after {limit:.0f} times the seconds of an undisturbed run. *Done
again* is work whose result was there and was made once more: parts of scoring, whole epochs of training. The part or
the epoch that a killed process was in is lost with it, and not counted.
"""

# Finds the processes that may be killed, of a cluster and by the id of the command.
Victims = Callable[[Machine, int], list[int]]


@dataclass(frozen=True)
class Kind:
    """A kind of process to kill.

    Attributes:
        words: for the table.
        work: "score", "train" or "train-two".
        victims: finds the processes.
        tries: how many, unless that is asked for.
        shapes: CPUs of the head and of the second node, of each cluster that tries take in turn.
        replaced: another node comes for one that was lost, while the command runs.
    """

    words: str
    work: str
    victims: Victims
    tries: int = 20
    shapes: tuple[tuple[int, int], ...] = ((2, 0),)
    replaced: bool = False


@dataclass
class Try:
    """What became of one run.

    Attributes:
        kind: of process that was killed.
        seed: of the bench.
        number: of the try.
        same: the results are those of an undisturbed run.
        rerun: the command died, and was run again.
        hung: it was still running after the time limit.
        lost: ids that the CSV lacks.
        doubled: ids that are in it more than once.
        again: share of the work that was done although its result was there.
        parts_again: number of parts of it.
        after: seconds from the start to the kill; 0 where the run ended before.
        seconds: in all.
        said: the last line of a command that failed, or what is wrong.
    """

    kind: str
    seed: int
    number: int
    same: bool = False
    rerun: bool = False
    hung: bool = False
    lost: int = 0
    doubled: int = 0
    again: float = 0.0
    parts_again: int = 0
    after: float = 0.0
    seconds: float = 0.0
    said: str = ""


KINDS = {
    "score-actor": Kind("scoring: an actor, of 1, 2 or 4", "score", clusters.actors, 50, ((2, 0), (1, 0), (4, 0))),
    "score-driver": Kind("scoring: the command", "score", clusters.command),
    "score-node": Kind("scoring: a node of two", "score", clusters.node, shapes=((1, 1),)),
    "train-worker": Kind("training: the worker", "train", clusters.workers),
    "train-worker-of-two": Kind("training: a worker of two", "train-two", clusters.workers),
    "train-controller": Kind("training: Train's controller", "train", clusters.controller),
    "train-driver": Kind("training: the command", "train", clusters.command),
    "train-node": Kind(
        "training: a node of two, a worker on each; another comes",
        "train-two",
        clusters.node,
        shapes=((1, 1),),
        replaced=True,
    ),
    "head": Kind("scoring as a job: the head, with all on it", "score", clusters.command),
}
OUT = Path(__file__).with_name("reliability.md")
# A run has hung after so many times the seconds of an undisturbed one, and no sooner than this.
_LIMIT, _LEAST_LIMIT = 3.0, 60.0
_REPLACED_SECONDS = 5.0


def run_command(
    work: Work,
    name: str,
    machine: Machine,
    limit: float,
    seen: set,
    victims: Victims,
    kill: Callable[[float], bool],
    replaced: bool = False,
) -> tuple[int | None, float, float]:
    """Runs a command, and kills one of its processes by the way.

    Args:
        work: the command.
        name: of the try; a second call with the same one goes on.
        machine: where it runs.
        limit: seconds.
        seen: gets every part's file.
        victims: those that may be killed.
        kill: whether to kill one now, from the seconds for which there were any; then never asked again.
        replaced: whether another node comes for the one that was lost, some seconds later, as by an autoscaler.

    Returns:
        Exit code, or None where it hung; seconds to the kill, or 0; for how many seconds there were victims.
    """
    place = work.folder / name
    again = place.exists()
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "drive", *work.arguments(name, again)]
    environment = os.environ | {"RAY_ADDRESS": machine.address}
    started = time.monotonic()
    first, span, after = None, 0.0, 0.0
    with (place / "log.txt").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            now = time.monotonic() - started
            seen |= work.done(name)
            alive = [] if after else victims(machine, process.pid)
            if alive:
                first = now if first is None else first
                span = now - first
                if kill(span):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(sorted(alive)[int(1000 * span) % len(alive)], signal.SIGKILL)
                        after = now
            if replaced and after and now > after + _REPLACED_SECONDS:
                replaced = False
                machine.refill()
            if now > limit:
                process.kill()
                process.wait()
                return None, after, span
            time.sleep(0.05)
    seen |= work.done(name)
    return process.returncode, after, span


def attempt(kind: str, number: int, seed: int, work: Work, machine: Machine) -> Try:
    """One try: a run that is disturbed once, and its rerun if it died."""
    found = Try(kind, seed, number)
    chance = random.Random(f"{seed} {kind} {number}").random()
    name, limit, seen = f"{kind}-{seed}-{number}", max(_LEAST_LIMIT, _LIMIT * work.seconds), set[Any]()
    moment = chance * work.spans[kind]
    started = time.monotonic()
    code, found.after, span = run_command(
        work, name, machine, limit, seen, KINDS[kind].victims, lambda span: span >= moment, KINDS[kind].replaced
    )
    if not found.after:
        work.spans[kind] = span  # the machine has become faster since
    if code not in (0, None):
        found.rerun, found.said = True, _last_line(work.folder / name / "log.txt")
        machine.refill()  # as an operator would
        code, _, _ = run_command(work, name, machine, limit, seen, lambda *_: [], lambda _: False)
    found.hung = code is None
    if code:
        found.said = _last_line(work.folder / name / "log.txt")
    return judge(found, work, name, seen, started)


def attempt_head(number: int, seed: int, work: Work) -> Try:
    """The same for a job on a head that is killed; the rerun is a job on another one."""
    found = Try("head", seed, number)
    chance = random.Random(f"{seed} head {number}").random()
    name, seen, started = f"head-{seed}-{number}", set[Any](), time.monotonic()
    (work.folder / name).mkdir(parents=True)
    submit = [
        clusters.ray_command(),
        "job",
        "submit",
        "--",
        sys.executable,
        __file__,
        "drive",
        *work.arguments(name, False),
    ]
    for life in (1, 2):
        head = Head()
        try:
            begun = time.monotonic()
            with (work.folder / name / "log.txt").open("a") as log:
                environment = os.environ | {"RAY_ADDRESS": head.address}
                job = subprocess.Popen(submit, env=environment, stdout=log, stderr=subprocess.STDOUT)
                while job.poll() is None and time.monotonic() - begun < _LEAST_LIMIT + _LIMIT * work.seconds:
                    seen |= work.done(name)
                    # The job begins some seconds after it was submitted.
                    if life == 1 and not found.after and time.monotonic() - begun > 3 + chance * 1.2 * work.seconds:
                        found.after = time.monotonic() - begun
                        head.kill()
                    time.sleep(0.05)
                found.hung = job.poll() is None
                if found.hung:
                    job.kill()
                    job.wait()
            if job.returncode == 0 or found.hung:
                break
            found.rerun = life == 1
            found.said = _last_line(work.folder / name / "log.txt")
        finally:
            head.kill()
    return judge(found, work, name, seen | work.done(name), started)


def judge(found: Try, work: Work, name: str, seen: set, started: float) -> Try:
    """Compares what a try made with what an undisturbed run makes."""
    made = work.made(name)
    found.seconds = time.monotonic() - started
    found.same = made == work.expected and not found.hung
    if work.scores:
        wanted = _ids(work.expected)
        got = _ids(made or b"")
        found.lost, found.doubled = len(set(wanted) - set(got)), len(got) - len(set(got))
        names = {part for part, _, _ in seen}
        found.parts_again = len(seen) - len(names)
        found.again = found.parts_again / max(1, len(names))
        found.same &= work.beside(name) == work.beside("undisturbed")
    elif made is not None:
        told = re.findall(r"^epoch +(\d+) ", (work.folder / name / "log.txt").read_text(errors="replace"), re.MULTILINE)
        found.again = (len(told) - len(set(told))) / EPOCHS
    if found.same:
        shutil.rmtree(work.folder / name)
    else:
        found.said = (found.said or "the results differ").replace(f"{work.folder}/", "")
    return found


def _ids(content: bytes) -> list[str]:
    return [row[0] for row in csv.reader(io.StringIO(content.decode()))][1:]


def _last_line(log: Path) -> str:
    """What catdog said last; else the last line that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return ([line for line in lines if line.startswith("catdog: ")] or lines or [""])[-1][:300]


def measure(work: Work, kind: str, machine: Machine) -> None:
    """Runs a command undisturbed, for what it makes and how long the processes of a kind are there."""
    shutil.rmtree(work.folder / "undisturbed", ignore_errors=True)
    started = time.monotonic()
    victims = KINDS[kind].victims
    code, _, work.spans[kind] = run_command(work, "undisturbed", machine, 300, set(), victims, lambda _: False)
    if code != 0:
        raise RuntimeError((work.folder / "undisturbed" / "log.txt").read_text()[-3000:])
    work.seconds = time.monotonic() - started
    made = work.made("undisturbed")
    if work.expected not in (None, made):
        raise RuntimeError(f"two undisturbed runs differ: {work.command}")
    work.expected = made


app = typer.Typer(pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def drive(arguments: Annotated[list[str], typer.Argument()]) -> None:
    """The `catdog` command with small parts."""
    from catdog.cli import main
    from catdog.scoring import parts

    parts.PART_ROWS = works.PART_ROWS
    sys.argv = ["catdog", *arguments]
    main.main()


@app.command()
def stress(
    kinds: Annotated[str, typer.Option(help=f"Of {', '.join(KINDS)}; separated by commas.")] = ",".join(KINDS),
    tries: Annotated[int, typer.Option(help="Of each kind; 0 for 20, and 50 of scoring actors.")] = 0,
    seed: Annotated[int, typer.Option(help="Decides which moments.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first try, to replay one.")] = 0,
    minutes: Annotated[float, typer.Option(help="For all kinds; those that are not reached are fewer tries.")] = 40,
    kept: Annotated[Path | None, typer.Option(help="A file that keeps every try, for the next call's table.")] = None,
    out: Annotated[Path, typer.Option(help="The table.")] = OUT,
) -> None:
    """Kills processes of every kind, and writes the table."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(QUIET)
    folder = Path(tempfile.mkdtemp(prefix="catdog-stress-"))
    # As the README asks for: a head wants a token as soon as there is one on the machine.
    (folder / "token").write_text(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    made = works.make_works(folder)
    end = time.monotonic() + 60 * minutes
    chosen = kinds.split(",")
    found = [Try(**json.loads(line)) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    for at, kind in enumerate(chosen):
        # What a kind leaves of its share, the next ones have.
        share = time.monotonic() + (end - time.monotonic()) / (len(chosen) - at)
        for one in _attempts(kind, made, tries or KINDS[kind].tries, seed, first, share):
            found.append(one)
            print(json.dumps(asdict(one)), flush=True)
            if kept:
                with kept.open("a") as stream:
                    stream.write(json.dumps(asdict(one)) + "\n")
    text = table(found)
    out.write_text(text)
    print(text)
    if not all(one.same for one in found):
        print(f"What failed is kept in {folder}")
        raise typer.Exit(1)
    shutil.rmtree(folder, ignore_errors=True)


def _attempts(kind: str, made: dict[str, Work], tries: int, seed: int, first: int, end: float) -> Any:
    work, shapes = made[KINDS[kind].work], KINDS[kind].shapes
    for at, (cpus, second) in enumerate(shapes):
        share = time.monotonic() + (end - time.monotonic()) / (len(shapes) - at)
        machine = Machine(cpus, second)
        try:
            machine.refill()
            measure(work, kind, machine)
            if kind == "head":
                machine.stop()
            for number in range(first + at, first + tries, len(shapes)):
                if time.monotonic() > share:
                    break
                machine.refill()
                one = attempt_head(number, seed, work) if kind == "head" else attempt(kind, number, seed, work, machine)
                if one.after or not one.same:  # else the run had ended before it could be killed
                    yield one
        finally:
            if kind != "head":
                machine.stop()


def table(found: list[Try]) -> str:
    """The table of all tries, and what those that failed said."""
    lines = [
        "| killed | tried | survived | after a rerun | hung | rows lost | rows doubled | done again | at most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        own = [one for one in found if one.kind == name]
        if not own:
            continue
        survived = [one for one in own if one.same]
        if kind.work == "score":
            rows = f"{sum(one.lost for one in own)} | {sum(one.doubled for one in own)}"
            most = f"{max(one.parts_again for one in own)} parts"
        else:
            epochs = round(EPOCHS * max(one.again for one in own))
            rows, most = "– | –", f"{epochs} epoch{'s' * (epochs != 1)}"
        lines.append(
            f"| {kind.words} | {len(own)} | {len(survived)} | {sum(one.rerun for one in survived)} | "
            f"{sum(one.hung for one in own)} | {rows} | {sum(one.again for one in own) / len(own):.2%} | {most} |"
        )
    failed = [f"* {one.kind}, seed {one.seed}, try {one.number}: {'hung' if one.hung else one.said}" for one in found
              if not one.same]  # fmt: skip
    seeds = ", ".join(map(str, sorted({one.seed for one in found})))
    return "\n".join([TITLE.format(limit=_LIMIT), f"Seeds: {seeds}.\n", *lines, "", *failed]).rstrip() + "\n"


if __name__ == "__main__":
    app()
