"""One predictor for every use: whatever way an image comes to it, its numbers are the same to the last bit."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import jpeg, save_untrained

from catdog import storage
from catdog.data import images
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.inference import Predictor
from catdog.inference.bundle import ModelBundle
from catdog.inference.predictor import Predictions


def bits(found: Predictions) -> list[tuple]:
    """What is predicted of each image, comparable also where it is not a number."""
    return list(zip(found.logits.view(np.int32), found.probabilities, found.statuses, found.details, strict=True))


@pytest.fixture(scope="module")
def pair(untrained: str, drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two bundles of different image sizes, priors and views, the second of two members."""
    other = str(tmp_path_factory.mktemp("other") / "model")
    save_untrained(other, drawn, size=48, members=2, views=["identity", "mirror"], prior=0.3, temperature=2.0)
    return [untrained, other]


@pytest.mark.parametrize(("engine", "batch_sizes"), [("onnx", (4, 64)), ("tensorflow", (8,))])
@pytest.mark.parametrize("several", [False, True])
def test_alone_and_in_a_batch_an_image_gets_the_same_bits(
    pair: list[str], drawn: Catalog, engine: str, batch_sizes: tuple[int, ...], several: bool
) -> None:
    uris = drawn.split("test")["uri"].to_pylist()[:11]
    files = [Path(uri).read_bytes() for uri in uris]
    files[5] = b""
    found = {}
    for batch_size in batch_sizes:
        predictor = Predictor.load(pair if several else pair[:1], engine, batch_size=batch_size)
        alone = [bits(predictor.predict_files([data]))[0] for data in files]
        assert bits(predictor.predict_files(files)) == alone
        pixels = {
            size: np.stack([images.decode_image(data, size).pixels for data in files]) for size in predictor.sizes
        }
        verdicts = [images.decode_image(data, 32) for data in files]
        decoded = images.Batch(pixels, [v.status for v in verdicts], [v.detail for v in verdicts])
        assert bits(predictor.predict_decoded(decoded)) == alone
        read = bits(predictor.predict_uris(uris))
        assert read[:5] + read[6:] == alone[:5] + alone[6:]
        found[batch_size] = alone
    assert all(each == alone for each in found.values())


def test_while_another_thread_has_its_turn_the_first_batch_is_read(
    untrained: str, drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [shutil.copy(uri, tmp_path) for uri in drawn.split("test")["uri"].to_pylist()[:11]]
    read: list[str] = []
    read_bytes = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, *most: [read_bytes(uri, *most), read.append(uri)][0])

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        end = time.monotonic() + 20
        while len(read) < 8:
            assert time.monotonic() < end, "nothing is read ahead"
            time.sleep(0.01)
        for uri in uris:
            Path(uri).unlink()
        yield

    found = Predictor.load([untrained], batch_size=8).predict_uris(uris, turn=turn())
    assert found.statuses == ["ok"] * 8 + ["unreadable"] * 3


def test_several_bundles_are_averaged_and_an_unreadable_image_gets_the_prior(pair: list[str]) -> None:
    files: list[bytes | str] = [jpeg(1), "could not be read: no such file", jpeg(2), b"", jpeg(3)]
    found = Predictor.load(pair).predict_files(files)
    assert found.statuses == ["ok", "unreadable", "ok", "unreadable", "ok"]
    assert found.details == ["", "could not be read: no such file", "", "is empty (0 bytes)", ""]
    assert found.unreadable.tolist() == [False, True, False, True, False]
    assert found.probabilities[[1, 3]] == pytest.approx((0.5 + 0.3) / 2)
    loaded = [ModelBundle.load(uri) for uri in pair]
    readable = [data for data in files if isinstance(data, bytes) and data]
    each = [
        bundle.logits(np.stack([images.decode_image(data, bundle.info.image_size).pixels for data in readable]))
        for bundle in loaded
    ]
    assert found.logits[~found.unreadable] == pytest.approx(np.mean(each, axis=0), abs=1e-6)
    expected = 1 / (1 + np.exp(-np.mean(each, axis=0, dtype=np.float64) / np.sqrt(2.0)))
    assert found.probabilities[~found.unreadable] == pytest.approx(expected, abs=1e-6)


def test_no_images_and_an_engine_that_is_not_there(pair: list[str], tmp_path: Path) -> None:
    predictor = Predictor.load(pair)
    assert len(predictor.predict_files([]).logits) == len(predictor.predict_uris([]).probabilities) == 0
    # Without ONNX files in one of them, TensorFlow runs both.
    bare = str(shutil.copytree(pair[0], tmp_path / "bare"))
    description = tmp_path / "bare" / "bundle.json"
    description.write_text(description.read_text().replace('"onnx": "verified"', '"onnx": "none was made"'))
    assert len(Predictor.load([pair[1], bare]).predict_files([jpeg(1)]).logits) == 1
    with pytest.raises(UsageError, match="--engine received onnx, but .* has no ONNX model: none was made"):
        Predictor.load([pair[1], bare], "onnx")
