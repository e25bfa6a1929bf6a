"""The review of an audit: what is shown, what is written, and what training makes of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from local_server import listening
from PIL import Image

from catdog.data import key_list
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.experiments import audit
from catdog.experiments.audit import Finding
from catdog.serving.review import Review, build_review_app, reviewing
from catdog.training import corrections


@pytest.fixture
def keys(drawn: Catalog) -> dict[str, list[str]]:
    return {split: drawn.split(split)["key"].to_pylist() for split in ("train", "valid", "test")}


@pytest.fixture
def found(drawn: Catalog, keys: dict[str, list[str]], tmp_path: Path) -> str:
    """An audit: two labels, one of them in validation, a copy of the first in test, and one across splits."""
    label = dict(zip(drawn.table["key"].to_pylist(), drawn.table["label"].to_pylist(), strict=True))

    def finding(split: str, at: int, issue: str, score: float, other: str = "") -> Finding:
        key = keys[split][at]
        return Finding(key, split, drawn.class_names[label[key]], issue, score, other, bool(other))

    findings = [
        finding("train", 5, "label", 0.01),
        finding("valid", 0, "label", 0.02),
        finding("train", 2, "ambiguous", 0.55),
        finding("train", 5, "duplicate", 3, keys["test"][1]),
        finding("valid", 1, "duplicate", 4, keys["train"][7]),
    ]
    audit.write_findings(findings, str(tmp_path / "audit.csv"))
    return str(tmp_path / "audit.csv")


def test_photos_are_decided_one_by_one(drawn: Catalog, keys: dict[str, list[str]], found: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out.csv")
    review = Review(drawn, found, out)
    with (
        listening(build_review_app(review, drawn.class_names, out)) as url,
        httpx.Client(base_url=url) as client,
    ):
        shown = client.get("/items").json()
        # Likeliest errors first, a photo once, and only photos of the training split.
        assert [item["key"] for item in shown["items"]] == [keys["train"][at] for at in (5, 2, 7)]
        assert [each["issue"] for each in shown["items"][0]["findings"]] == ["label", "duplicate"]
        assert review.hidden == 1
        copy = shown["items"][0]["findings"][1]["other"]
        assert shown["others"][str(copy)] == {"key": keys["test"][1], "split": "test", "label": ""}
        rows = [item["row"] for item in shown["items"]]
        picture = client.get(f"/pictures/{rows[0]}")
        with Image.open(io.BytesIO(picture.content)) as image, Image.open(drawn.table["uri"][rows[0]].as_py()) as photo:
            assert image.size == photo.size
        assert client.get(f"/pictures/{copy}").status_code == 200

        def decide(row: int, action: str | None) -> httpx.Response:
            return client.post("/decisions", json={"row": row, "action": action})

        assert decide(rows[0], "flip").json() == {"written": True}
        assert decide(rows[1], "leave out").is_success
        assert decide(rows[2], "keep").is_success
        expected = [["key", "action"], [keys["train"][5], "flip"], [keys["train"][2], "leave out"]]
        written = list(csv.reader((tmp_path / "out.csv").open(newline="")))
        assert written == [*expected, [keys["train"][7], "keep"]]
        assert decide(rows[2], None).is_success
        assert list(csv.reader((tmp_path / "out.csv").open(newline=""))) == expected

        hidden = drawn.table["key"].to_pylist().index(keys["valid"][0])
        assert decide(hidden, "flip").status_code == 404
        assert client.get(f"/pictures/{hidden}").status_code == 404
        assert decide(rows[0], "delete").status_code == 422
        assert client.get("/items", headers={"Host": "rebound.example.com"}).status_code == 400
        # What another site's page can send without being asked about it is refused.
        text = {"content-type": "text/plain"}
        forged = client.post("/decisions", content=f'{{"row": {rows[0]}, "action": "keep"}}', headers=text)
        assert forged.status_code == 422
    # A second review goes on from there.
    actions = [item.action for item in Review(drawn, found, out).items]
    assert actions == ["flip", "leave out", None]


def test_training_follows_the_decisions_and_validation_does_not(
    drawn: Catalog, keys: dict[str, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    decided = {
        keys["train"][0]: "flip",
        keys["train"][1]: "leave out",
        keys["train"][2]: "keep",
        keys["valid"][0]: "flip",
    }
    out.write_text(key_list.format_actions(decided))
    changes = corrections.read_corrections(str(out), drawn)
    rows = drawn.split("train")
    corrected = corrections.correct_rows(rows, changes)
    assert corrected["key"].to_pylist() == [key for key in keys["train"] if key != keys["train"][1]]
    assert corrected.schema.equals(rows.schema)
    before = dict(zip(keys["train"], rows["label"].to_pylist(), strict=True))
    after = dict(zip(corrected["key"].to_pylist(), corrected["label"].to_pylist(), strict=True))
    assert {key for key in after if after[key] != before[key]} == {keys["train"][0]}
    assert after[keys["train"][0]] == 1 - before[keys["train"][0]]
    # As it was, for a list without actions.
    out.write_text(f"key,issue\n{keys['train'][3]},label\n")
    plain = corrections.read_corrections(str(out), drawn)
    assert (plain.left_out, plain.flipped) == ({keys["train"][3]}, set())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,action\nKEY,remove\n", "has the action 'remove', expected keep, flip, leave out"),
        ("key,action\nKEY,keep\nKEY,flip\n", "has two actions, keep and flip"),
        ("key,action\nKEY\n", "line 2 has no column action"),
        ("key,action\nnobody.jpg,flip\n", "1 unknown keys such as 'nobody.jpg'"),
    ],
)
def test_a_damaged_review_is_not_trained_with(
    text: str, message: str, drawn: Catalog, keys: dict[str, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text(text.replace("KEY", keys["train"][0]))
    with pytest.raises(UsageError, match=f"--leave-out received .*{message}"):
        corrections.read_corrections(str(out), drawn)


def test_what_is_no_audit_is_refused(drawn: Catalog, keys: dict[str, list[str]], found: str, tmp_path: Path) -> None:
    def review(audit_text: str, out: str = "out.csv") -> None:
        (tmp_path / "other.csv").write_text(audit_text)
        Review(drawn, str(tmp_path / "other.csv"), str(tmp_path / out))

    with pytest.raises(UsageError, match="expected the CSV that `catdog data audit` wrote"):
        review("key\na.jpg\n")
    with pytest.raises(UsageError, match="with keys such as 'a.jpg', which .* does not hold"):
        review("key,issue,score,other\na.jpg,label,0.1,\n")
    with pytest.raises(UsageError, match="is damaged: could not convert"):
        review(f"key,issue,score,other\n{keys['train'][0]},label,much,\n")
    with pytest.raises(CatdogError, match="no photo of the training split"):
        review(f"key,issue,score,other\n{keys['valid'][0]},label,0.1,\n")
    # A file of somebody else is not replaced.
    with pytest.raises(UsageError, match="which is there and no review"):
        Review(drawn, found, found)
    with pytest.raises(UsageError, match="--audit received .*no.csv, which could not be read"):
        Review(drawn, str(tmp_path / "no.csv"), str(tmp_path / "out.csv"))


def test_photos_whose_names_a_spreadsheet_would_run(drawn: Catalog, tmp_path: Path) -> None:
    names = dict(zip(drawn.split("train")["key"].to_pylist(), ("=1+1.jpg", "'-rf.jpg"), strict=False))
    column = [names.get(key, key) for key in drawn.table["key"].to_pylist()]
    data = dataclasses.replace(drawn, table=drawn.table.set_column(0, "key", [column]))
    first, second = names.values()
    audit.write_findings([Finding(first, "train", "=cat", "duplicate", 3, second)], str(tmp_path / "audit.csv"))
    review = Review(data, str(tmp_path / "audit.csv"), str(tmp_path / "out.csv"))
    assert [item.key for item in review.items] == [first]
    assert [other["key"] for other in review.others.values()] == [second]


def test_the_command_ends_by_a_signal_and_keeps_everything(drawn: Catalog, found: str, tmp_path: Path) -> None:
    with listening(lambda *_: None) as url:  # type: ignore[arg-type,return-value]
        port = url.rstrip("/").rpartition(":")[2]
        with pytest.raises(CatdogError, match=f"port {port} of 127.0.0.1 is in use; give another --port"):
            reviewing(lambda *_: None, int(port)).__enter__()  # type: ignore[arg-type,return-value]
    command = [sys.executable, "-m", "catdog", "data", "review", "--audit", found, "--data", drawn.root, "--port", port]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == f"Page: http://127.0.0.1:{port}/\n"
    item = httpx.get(f"http://127.0.0.1:{port}/items").json()["items"][0]
    httpx.post(f"http://127.0.0.1:{port}/decisions", json={"row": item["row"], "action": "flip"})
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=20)
    assert started.returncode == 130
    out = tmp_path / "audit.reviewed.csv"
    assert said == (f"catdog: interrupted; what was decided is in {out}, and the same command goes on from there\n")
    assert out.read_text().splitlines() == ["key,action", f"{item['key']},flip"]
