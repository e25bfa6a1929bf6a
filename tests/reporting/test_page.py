"""The page, made here without a cluster: what it says and shows, in every state that a run may be in."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import jpeg, saved_info
from PIL import Image
from scipy import special
from sklearn import metrics as sklearn_metrics

from catdog.data import packing
from catdog.data.catalog import SCHEMA, Catalog
from catdog.evaluation import metrics
from catdog.evaluation.calibration import Applied
from catdog.inference.bundle import BundleInfo, SavedBundle
from catdog.inference.provenance import Provenance
from catdog.reporting import page, report
from catdog.reporting.page import Source, Stage
from catdog.reporting.pictures import Scores
from catdog.reporting.report import Report, Subject

HISTORY = [
    {"epoch": 1, "loss": 0.6, "valid_log_loss": 0.51, "valid_accuracy": 0.75, "images_per_second": 400.0},
    {"epoch": 2, "loss": 0.4, "valid_log_loss": 0.42, "valid_accuracy": 0.81, "images_per_second": 600.0},
]
OPTIONS = {"data": "/data/set", "recipe": "plain", "arch": "small_resnet", "name": "it's", "epochs": 2}
COMMAND = "catdog train --data s3://me:secret@bucket/set --recipe plain --name 'a b'"
EMPTY = pa.table({name: pa.array([], pa.string()) for name in ("id", "key", "detail")})
VOID = {"area", "base", "br", "col", "hr", "image", "img", "input", "link", "meta", "path", "use"}


class Parsed(html.parser.HTMLParser):
    """What a page has: its tags, its text outside style, and whether all elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [at["id"] for _, at in self.tags if "id" in at]
        assert len(ids) == len(set(ids))
        self.ids = set(ids)
        self.text = " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element with this tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def data_set(
    root: Path, labels: dict[str, list[int | None]], name: str = "{split}/{number}.jpg", **fields: object
) -> Catalog:
    """A catalog with a small image for each label."""
    rows = []
    for split, each in labels.items():
        for number, label in enumerate(each):
            key = name.format(split=split, number=number)
            path = root / f"{split}-{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number + 500 * (split == "test"), (64, 48)))
            digest = number + 1 + 1000 * (split == "test")
            rows.append(
                {"key": key, "id": str(number), "uri": str(path), "label": label, "split": split, "digest": digest}
            )
    class_names = fields.pop("class_names", ("cat", "dog"))
    return Catalog(pa.Table.from_pylist(rows, schema=SCHEMA), class_names, str(root), fields)  # type: ignore[arg-type]


def source(
    data: Catalog,
    logits: dict[str, np.ndarray],
    info: BundleInfo | None = None,
    train: range = range(0),
    applied: Applied | None = None,
    **fields: object,
) -> Source:
    """What a page of these predictions is made of; NaN is an unreadable image."""
    info = info or saved_info(
        data, training={"options": OPTIONS, "command": COMMAND, "history": HISTORY}, validation={"epoch": 2}
    )
    applied = applied or Applied(1.5, 0.001, "none")
    tables, scores, counts = {}, {}, {}
    for split, each in logits.items():
        rows, unreadable = data.split(split), np.isnan(each)
        probabilities = np.where(
            unreadable, info.prior, metrics.calibrated(np.nan_to_num(each), applied.temperature, applied.clip)
        )
        listed = rows.select(["id", "key"]).append_column("detail", pa.array(["<b>is empty</b>"] * len(each)))
        scores[split] = Scores(split, rows, each, probabilities, 1, listed.filter(pa.array(unreadable)))
        counts[split] = {"ok": len(each), "recovered": 1, "unreadable": int(unreadable.sum())}
        if data.is_labelled(split):
            tables[split] = rows.select(["key", "label", "digest"]).append_column(
                "logit", pa.array(each, mask=unreadable)
            )
            tables[split] = tables[split].append_column("probability", pa.array(probabilities))
            tables[split] = tables[split].append_column("status", pa.array(np.where(unreadable, "unreadable", "ok")))
    provenance = Provenance(np.array(train, np.uint64), np.empty(0, np.uint64), True)
    content = report.build_report(tables, counts, Subject(info, provenance, data, applied)) if tables else Report()
    given = {"title": "results.csv", "command": "catdog score --model m", "facts": [], "versions": {"ray": "2.60"}}
    return Source(
        **(
            given
            | {"report": content, "scores": scores, "info": info, "models": [SavedBundle("/runs/m", info)]}
            | fields
        )
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, dict[str, np.ndarray]]:
    """200 validation images, the last of them unreadable, and 60 test images, with plausible logits."""
    random = np.random.default_rng(1)
    honest = random.normal(0, 3, 200)
    labels = (random.random(200) < special.expit(honest)).astype(int).tolist()
    data = data_set(tmp_path_factory.mktemp("usual"), {"valid": labels, "test": [None] * 60})
    return data, {"valid": np.append(1.6 * honest[:-1], np.nan), "test": random.normal(0, 4, 60)}


@pytest.fixture(scope="module")
def rendered(usual: tuple[Catalog, dict[str, np.ndarray]]) -> str:
    return page.render_page(source(*usual, stages=[Stage("scoring", 260, 2.0)]))


def test_the_parts_are_there_in_this_order(rendered: str) -> None:
    found = Parsed(rendered)
    parts = ["headline", "kaggle", "training", "valid", "test-images", "unreadable", "drift", "made"]
    assert re.findall(r'<h2 id="([^"]+)"', rendered) == parts
    assert [each["href"] for each in found.having("a")] == ["#main", *(f"#{part}" for part in parts)]
    grids = re.findall(r"<h3>([^<]*)</h3>\s*<ul class=\"grid\" role=\"list\">(.*?)</ul>", rendered, re.DOTALL)
    assert [(title, body.count("<li>")) for title, body in grids if "evenly" in title or "First" in title] == [
        ("Predictions, spread evenly over the split", 25),
        ("First predictions", 25),
    ]
    assert [title for title, _ in grids][1:4] == ["Most confident mistakes", "Most confident hits", "Least sure"]
    assert [title for title, _ in grids][5:] == ["Surest: cat", "Surest: dog", "Least sure"]
    assert len(found.having("svg")) == len(re.findall(r'<svg[^>]*(?:role="img"|aria-hidden)', rendered))


def test_the_figures_are_those_of_the_report(usual: tuple[Catalog, dict[str, np.ndarray]], rendered: str) -> None:
    data, logits = usual
    text, labels = Parsed(rendered).text, data.split("valid")["label"].to_numpy()
    probabilities = np.append(metrics.calibrated(logits["valid"][:-1], 1.5, 0.001), 0.5)
    log_loss = sklearn_metrics.log_loss(labels, probabilities)
    assert f"log loss is {log_loss:.4f}" in text
    assert f"about {log_loss:.4f} , likely between" in text
    assert "0.03302" in text
    assert "indicative only, because its photos are others" in text
    wrong = int(((probabilities > 0.5) != labels).sum())
    assert f"({wrong} mistakes)" in text
    assert f"{sklearn_metrics.roc_auc_score(labels, probabilities):.4f}" in text
    (true_negative, false_positive), (false_negative, true_positive) = sklearn_metrics.confusion_matrix(
        labels, probabilities > 0.5
    )
    assert f"cat {true_negative} {false_positive} {true_negative + false_positive} " in text
    assert f"dog {false_negative} {true_positive} {false_negative + true_positive} " in text
    losses = np.sort(metrics.losses(labels, probabilities))[::-1]
    share = losses[:10].sum() / losses.sum()
    assert f"The 10 worst of 200 images have {100 * share:.1f} % of it" in text
    assert "1 of 200 in validation; each has the training prior, 0.5000" in text
    assert "scoring 130 260 images in 2.0 s" in text
    assert "training 500 2 epochs" in text
    assert "catdog train --data s3://…@bucket/set --recipe plain --name 'a b'" in text
    assert 'recipe "plain"' in text


def test_the_order_of_a_grid_is_by_what_it_is_about(
    usual: tuple[Catalog, dict[str, np.ndarray]], rendered: str
) -> None:
    data, logits = usual
    labels, keys = data.split("valid")["label"].to_numpy(), data.split("valid")["key"].to_pylist()
    right = np.where(labels == 1, 1, -1) * np.nan_to_num(logits["valid"])

    def shown(title: str) -> list[str]:
        body = rendered.partition(f"<h3>{title}</h3>")[2].partition("</ul>")[0]
        return re.findall(r'<bdi class="key">(.*?)</bdi>', body)

    assert shown("Most confident mistakes") == [keys[row] for row in np.argsort(right)[:20] if right[row] < 0]
    assert shown("Most confident hits") == [keys[row] for row in np.argsort(-right)[:20]]
    assert shown("Surest: dog")[0] == f"test/{int(logits['test'].argmax())}.jpg"
    assert shown("Surest: cat")[0] == f"test/{int(logits['test'].argmin())}.jpg"
    assert shown("First predictions")[:2] == ["test/0.jpg", "test/1.jpg"]


def test_it_needs_nothing_else_is_small_and_the_same_each_time(
    usual: tuple[Catalog, dict[str, np.ndarray]], rendered: str
) -> None:
    found = Parsed(rendered)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.tags}
    assert set(re.findall(r"https?://[^\"' <]*", rendered)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for _, attributes in found.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in found.ids
    for target in re.findall(r"url\(#([^)]+)\)", rendered):
        assert target in found.ids
    assert len(rendered.encode()) < 5_000_000
    assert not re.search(r"#00000[1-5]\b", rendered)  # matplotlib's colours became the page's
    assert page.render_page(source(*usual, stages=[Stage("scoring", 260, 2.0)])) == rendered


def test_each_picture_is_in_the_page_once_and_is_the_image(
    usual: tuple[Catalog, dict[str, np.ndarray]], rendered: str
) -> None:
    pictures = {each["id"]: each["href"] or "" for each in Parsed(rendered).having("image")}
    assert len(set(pictures.values())) == len(pictures) > 60
    used = re.findall(r'aria-label="(test/3\.jpg[^"]*)"><use href="#([^"]+)"', rendered)
    assert used[0][0].startswith("test/3.jpg: ")
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[used[0][1]].partition(",")[2])))
    original = Image.open(Path(usual[0].root) / "test-3.jpg")
    assert shown.size == original.size == (64, 48)
    assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 6


def test_pictures_that_are_hard_to_compress_stay_small(tmp_path: Path) -> None:
    data = data_set(tmp_path, {"valid": [0, 1] * 100, "test": [None] * 200})
    random = np.random.default_rng(0)
    for uri in data.table["uri"].to_pylist():
        Image.fromarray(random.integers(0, 256, (200, 200, 3), np.uint8)).save(uri, quality=95)
    logits = {"valid": random.normal(0, 3, 200), "test": random.normal(0, 3, 200)}
    assert len(page.render_page(source(data, logits))) < 5_000_000


def test_names_that_want_to_be_more_than_names(tmp_path: Path) -> None:
    hostile = "{split}/{number}<script>alert(1)</script>\"' onload=x {{{{7*7}}}} \u202e\x00\x1b \N{DOG FACE}.jpg"
    names = ("<i>$\\frac{cat", '_"dog" & \N{PILE OF POO}')
    data = data_set(tmp_path, {"valid": [0, 1, 1, 0], "test": [None, None]}, hostile, class_names=names)
    logits = {"valid": np.array([-2.0, 2.0, np.nan, 1.0]), "test": np.array([1.0, -1.0])}
    info = saved_info(data, training={"options": OPTIONS | {"name": "<script>x</script>"}, "history": HISTORY})
    text = page.render_page(source(data, logits, info, title="<script>t</script>\ud800"))
    found = Parsed(text)
    assert found.having("script") == found.having("i") == found.having("b") == []
    assert "<script>alert(1)</script>" in found.text
    assert "{{7*7}}" in found.text
    assert "<b>is empty</b>" in found.text
    assert all("onload" not in attributes for _, attributes in found.tags)
    assert not re.search(r"[\x00\x1b]", text)
    assert "probability of _&quot;dog" in text.replace('"', "&quot;")
    assert text.encode()  # no surrogates
    # The order of writing ends where the name does.
    assert re.search(r'<bdi class="key">[^<]*\u202e[^<]*</bdi>', text)


def test_keys_to_a_bucket_are_not_shown(usual: tuple[Catalog, dict[str, np.ndarray]]) -> None:
    facts = [("data", "s3://AKIA:secret@bucket/data?endpoint_override=x&secret_key=hidden")]
    text = page.render_page(source(*usual, facts=facts, command="catdog score --data s3://AKIA:secret@bucket/data"))
    assert "bucket/data" in text
    assert "secret" not in text
    assert "=hidden" not in text


@pytest.mark.parametrize(
    "state", ["valid", "test", "labelled", "trained on", "one", "one class", "unreadable", "perfect"]
)
def test_whatever_a_run_has_there_is_a_page(tmp_path: Path, state: str) -> None:
    labels: dict[str, list[int | None]] = {"valid": [0, 1] * 15, "test": [None] * 12}
    random = np.random.default_rng(2)
    logits = {split: random.normal(0, 3, len(each)) for split, each in labels.items()}
    train, expected, absent = range(0), "log loss is", " nan "
    if state == "valid":
        del labels["test"], logits["test"]
        absent = "What Kaggle may say"
    elif state == "test":
        labels["valid"] = []
        del logits["valid"]
        expected, absent = "No validation images with labels were scored", "Validation in detail"
    elif state == "labelled":
        labels["test"] = [1, 0] * 6
        expected, absent = "Test in detail", "What Kaggle may say"
    elif state == "trained on":
        train = range(1, 31)
        expected, absent = "trained on all 30 validation images", "Drift"
    elif state == "one":
        labels, logits = {"valid": [1], "test": [None]}, {"valid": np.array([0.3]), "test": np.array([-0.2])}
        expected = "On 1 validation image that"
    elif state == "one class":
        labels["valid"] = [0] * 30
        expected = "All images are of one class"
    elif state == "unreadable":
        logits = {split: np.full(len(each), np.nan) for split, each in labels.items()}
        expected, absent = "30 of 30 in validation", "Drift"
    elif state == "perfect":
        logits["valid"] = np.array([-40.0, 40.0] * 15)
        expected = "It made no mistakes here"
    data = data_set(tmp_path, {split: each for split, each in labels.items() if each})
    found = Parsed(page.render_page(source(data, logits, train=train)))
    assert expected in found.text
    assert absent not in found.text
    assert "None" not in found.text.replace("None.", "")


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, "the model does not say how its epochs went"),
        ({"options": OPTIONS, "history": []}, "the model does not say how its epochs went"),
        ({"history": [{"epoch": 1}, {"loss": float("nan")}]}, "2 epochs"),
        ({"history": "none"}, "the model does not say how its epochs went"),
        ({"members": [{"history": HISTORY, "options": {"keep": "last"}}, {}, {"history": HISTORY}]}, "Member 3"),
    ],
)
def test_curves_of_what_a_bundle_says(
    usual: tuple[Catalog, dict[str, np.ndarray]], training: dict[str, object], expected: str
) -> None:
    info = saved_info(usual[0], training=training, validation={})
    found = Parsed(page.render_page(source(*usual, info=info)))
    assert expected in found.text


def test_several_models_have_their_curves_and_commands_each(usual: tuple[Catalog, dict[str, np.ndarray]]) -> None:
    one = source(*usual)
    models = [one.models[0], SavedBundle("/runs/other", one.info)]
    text = Parsed(page.render_page(dataclasses.replace(one, models=models))).text
    assert "Model 1" in text
    assert "Model 2" in text
    assert "The model /runs/other was trained by" in text


def test_pictures_that_are_gone_or_packed(tmp_path: Path) -> None:
    data = data_set(tmp_path / "set", {"valid": [0, 1] * 4, "test": [None] * 4})
    logits = {"valid": np.linspace(-2, 2, 8), "test": np.linspace(-1, 1, 4)}
    plain = page.render_page(source(data, logits))
    data.write()
    packed = packing.pack_dataset(str(tmp_path / "set"), str(tmp_path / "packed"))[0]
    assert page.render_page(source(packed, logits)) == plain
    shutil.rmtree(tmp_path / "set")
    gone = Parsed(page.render_page(source(data, logits))).text
    assert gone.count("no picture: could not be read: No such file or directory") == plain.count('<use href="#picture')


def test_drawn_pictures_are_not_compared_with_photos(usual: tuple[Catalog, dict[str, np.ndarray]]) -> None:
    text = Parsed(page.render_page(source(*usual, is_drawn=True))).text
    assert "drawn by the program" in text
    assert "0.03302" not in text


def test_other_classes_are_not_compared_with_cats_and_dogs(tmp_path: Path) -> None:
    data = data_set(tmp_path, {"valid": [0, 1] * 4, "test": [None]}, class_names=("benign", "malignant"))
    text = Parsed(page.render_page(source(data, {"valid": np.linspace(-2, 2, 8), "test": np.array([0.0])}))).text
    assert "its log loss will be about" in text
    assert "0.03302" not in text


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.9869, "98.7 %"),
        (0.99996, "99.996 %"),
        (1 - 1e-7, "> 99.999 %"),
        (1e-9, "< 0.001 %"),
    ],
)
def test_nearly_all_is_not_shown_as_all(share: float, shown: str) -> None:
    assert page.percent(share).replace("\N{NO-BREAK SPACE}", " ") == shown
