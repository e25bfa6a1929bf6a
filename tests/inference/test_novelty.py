"""Novelty: distances against SciPy's and scikit-learn's, features against Keras's, and what a command says of noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import save_untrained
from PIL import Image
from scipy.spatial import distance
from sklearn.decomposition import PCA

from catdog.data import images
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.inference import bundle, export, novelty
from catdog.inference.novelty import FeatureExtractor, FeatureStatistics, KnownImages, NoveltyScorer
from catdog.models import registry
from catdog.models.registry import ModelSpec


def clusters(random: np.random.Generator, count: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of two classes, with variances that differ by direction."""
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(dimensions, dimensions)))[0]
    mixing = turn * np.linspace(3, 0.1, dimensions)
    labels = random.integers(0, 2, count)
    return random.normal(size=(count, dimensions)) @ mixing.T + 4 * labels[:, None], labels


@pytest.mark.parametrize(("count", "dimensions"), [(400, 12), (120, 40)])
def test_distances_are_those_of_scipy_and_scikit_learn(count: int, dimensions: int) -> None:
    random = np.random.default_rng(0)
    train, labels = clusters(random, count, dimensions)
    valid, _ = clusters(random, 200, dimensions)
    fitted = FeatureStatistics.fit(train, labels, valid)
    assert fitted is not None
    means = [train[labels == label].mean(axis=0) for label in (0, 1)]
    within = np.concatenate([train[labels == label] - means[label] for label in (0, 1)])
    if dimensions < count // 8:  # then it is the whole covariance
        precision = np.linalg.inv(within.T @ within / count)
    else:
        reference = PCA(n_components=count // 8, svd_solver="full").fit(within)
        precision = reference.get_precision() * count / (count - 1)

    def nearer(features: np.ndarray) -> np.ndarray:
        return np.array([min(distance.mahalanobis(one, mean, precision) for mean in means) for one in features])

    limit = np.sqrt(np.quantile(nearer(valid) ** 2, 0.99))
    others = np.concatenate([random.normal(size=(20, dimensions)) * 30, train[:20]])
    assert fitted.scores(others) == pytest.approx(nearer(others) / limit, rel=1e-4)
    assert (fitted.scores(valid) > 1).mean() == pytest.approx(0.01, abs=0.006)
    again = FeatureStatistics.from_bytes(fitted.to_bytes())
    assert np.array_equal(again.scores(others), fitted.scores(others))


def test_too_few_images_or_features_that_do_not_vary_give_no_statistics() -> None:
    random = np.random.default_rng(0)
    train, labels = clusters(random, 100, 5)
    assert FeatureStatistics.fit(train, labels, train[:19]) is None
    assert FeatureStatistics.fit(train, np.arange(100) // 90, train) is None
    assert FeatureStatistics.fit(np.ones((100, 5)), labels, train) is None
    assert FeatureStatistics.fit(np.full((100, 5), np.nan), labels, train) is None
    dead = np.concatenate([train, np.zeros((100, 500))], axis=1)  # units that never fire
    fitted = FeatureStatistics.fit(dead, labels, dead)
    assert fitted is not None
    assert np.isfinite(fitted.scores(np.ones((1, 505)))).all()
    with pytest.raises(CatdogError, match="statistics of features are damaged"):
        FeatureStatistics.from_bytes(b"PK\x03\x04")


@pytest.mark.parametrize("name", ["small_resnet", "blog_cnn", "mobilenet", "vgg16"])
def test_features_are_what_keras_gives_to_the_last_layer(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = registry.build_model(ModelSpec(name, 64, alpha=0.25))
    for variable in model.trainable_variables:  # as random weights give features of next to nothing
        variable.assign(variable * 1.5)
    batch = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    before = keras.Model(model.input, model.get_layer("logit").input)
    expected = np.asarray(before(batch, training=False))
    found = FeatureExtractor(export.export_onnx(model, batch)).features(list(batch))
    assert found.shape == expected.shape
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * float(np.abs(expected).max()))


def pixels(data: Catalog, split: str) -> list[np.ndarray]:
    return [images.read_image(uri, 32).pixels for uri in data.split(split)["uri"].to_pylist()]


@pytest.fixture(scope="module")
def knowing(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bundle of two members that knows the drawn pictures."""
    uri = str(tmp_path_factory.mktemp("knowing") / "model")
    labels = drawn.split("train")["label"].to_numpy().astype(np.int64)
    known = KnownImages(pixels(drawn, "train"), labels, pixels(drawn, "valid"))
    save_untrained(uri, drawn, members=2, known=known)
    return uri


@pytest.fixture
def pictures(drawn: Catalog, tmp_path: Path) -> Path:
    """Ten drawn pictures of the test split, black-and-white noise, and a file that is no image."""
    random, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for number, uri in enumerate(drawn.split("test")["uri"].to_pylist()[:10]):
        shutil.copy(uri, folder / f"drawn-{number}.jpg")
    for number in range(3):
        Image.fromarray(random.random((32, 32)) < 0.5).save(folder / f"noise-{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_the_command_says_what_is_perhaps_neither(knowing: str, pictures: Path, tmp_path: Path, catdog) -> None:
    shown = catdog("predict", pictures, "--model", knowing, "--json", "--sheet", tmp_path / "sheet.png")
    assert shown.code == 0, shown.err
    assert "not recognised" not in shown.err
    rows = {Path(row["file"]).stem: row for row in json.loads(shown.out)["predictions"]}
    assert rows["broken"]["novelty"] is None
    novel = {name for name, row in rows.items() if "perhaps neither cat nor dog" in row["remarks"]}
    assert novel >= {f"noise-{number}" for number in range(3)}
    assert len(novel) <= 4
    assert {name for name, row in rows.items() if (row["novelty"] or 0) > 1} == novel

    # An older bundle has no statistics, which change no prediction.
    old = shutil.copytree(knowing, tmp_path / "old")
    content = json.loads((old / "bundle.json").read_text())
    content["checksums"] = {name: digest for name, digest in content["checksums"].items() if "features" not in name}
    (old / "bundle.json").write_text(json.dumps(content))
    bare = catdog("predict", pictures, "--model", old, "--json")
    assert bare.err.startswith("Pictures of neither cat nor dog are not recognised: the model has no statistics")
    for row in json.loads(bare.out)["predictions"]:
        assert row["novelty"] is None
        assert row["logit"] == rows[Path(row["file"]).stem]["logit"]


def test_statistics_go_with_the_members_and_are_verified(
    knowing: str, untrained: str, pictures: Path, tmp_path: Path
) -> None:
    info = bundle.read_info(knowing).info
    names = {"model.features.npz", "model-2.features.npz"}
    assert names < info.checksums.keys()
    fields = info.model_dump(exclude={"members", "onnx", "images_known", "checksums", "versions", "schema_version"})
    both = export.assemble_bundle(str(tmp_path / "both"), [knowing, knowing], **fields)
    assert {f"model-{number}.features.npz" for number in (2, 3, 4)} < both.checksums.keys()
    mixed = export.assemble_bundle(str(tmp_path / "mixed"), [untrained, knowing], **fields)
    assert "model.features.npz" not in mixed.checksums
    assert mixed.checksums["model-3.features.npz"] == info.checksums["model-2.features.npz"]

    files = [(pictures / name).read_bytes() for name in ("drawn-0.jpg", "noise-0.png", "broken.jpg")]
    alone = NoveltyScorer([bundle.read_info(knowing)]).scores(files)
    assert alone[1] > 1
    assert np.isnan(alone[2])
    twice = NoveltyScorer([bundle.read_info(str(tmp_path / "both"))]).scores(files)
    assert twice[:2] == pytest.approx(alone[:2])
    assert [novelty.has_statistics(bundle.read_info(str(tmp_path / name))) for name in ("both", "mixed")] == [
        True,
        False,
    ]
    with pytest.raises(CatdogError, match="has no statistics of its features; train the model again"):
        NoveltyScorer([bundle.read_info(str(tmp_path / "mixed"))])
    (tmp_path / "both" / "model.features.npz").write_bytes(b"x")
    with pytest.raises(CatdogError, match="is not the file that bundle.json was written for"):
        NoveltyScorer([bundle.read_info(str(tmp_path / "both"))])
