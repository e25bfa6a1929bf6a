"""`catdog predict` and `catdog explain`: a few photos of one's own, without a data set and without Ray."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from catdog.cli import display
from catdog.cli.display import err
from catdog.errors import CatdogError, UsageError

if TYPE_CHECKING:
    from catdog.inference.bundle import SavedBundle
    from catdog.inference.predictor import Predictor
    from catdog.reporting.contact_sheet import Tile
    from catdog.reporting.predictions import PhotoRow

Photos = Annotated[list[str], typer.Argument(help="Photos, folders or archives of photos, and http or https URLs.")]
Models = Annotated[list[str], typer.Option(help="Run or bundle. Repeat it to average the logits of several.")]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Pattern of files or folders to leave out, such as 'sample'. Repeatable.")
]
AllowPrivate = Annotated[
    bool, typer.Option("--allow-private", help="Fetch URLs of private and local addresses too, such as a test server.")
]
# Photos of a contact sheet; of more, a picture would have more pixels than viewers open.
_MOST_TILES, _COLUMNS, _TILE_SIDE, _EXPLAINED_SIDE = 400, 6, 220, 320
# Photos that are read and predicted before the next ones are.
_GROUP = 64


def predict(
    photos: Photos,
    model: Annotated[
        list[str] | None, typer.Option(help="Run or bundle. Repeat it to average the logits of several.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    sheet: Annotated[str | None, typer.Option(help="PNG to write: a contact sheet of the photos.")] = None,
    imagenet: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH", help="Instead of --model: the five likeliest of ImageNet's classes, with such a backbone."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Keras weights file with the top for --imagenet. Default: downloaded.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="imagenet_class_index.json, or a text with 1,000 lines. Default: downloaded.")
    ] = None,
    ignore: Ignore = None,
    allow_private: AllowPrivate = False,
) -> None:
    """Predict the class of photos, folders of photos and images on the web."""
    from catdog import storage
    from catdog.data import photos as found_photos
    from catdog.data import thumbnails
    from catdog.reporting import contact_sheet, predictions

    if json_ and csv:
        raise UsageError("received --json and --csv, expected one of them")
    if bool(model) == bool(imagenet):
        either = "both --model and" if model else "neither --model nor"
        raise UsageError(f"received {either} --imagenet, expected one of them")
    if (weights or class_names) and not imagenet:
        raise UsageError("received --weights or --class-names without --imagenet")
    target = None if sheet is None else png_target(sheet, "--sheet")
    rows: list[PhotoRow] = []
    tiles: list[Tile] = []
    with tempfile.TemporaryDirectory() as folder, err.status("Predicting…") as status:
        scratch = Path(folder)
        found = found_photos.find_photos(photos, scratch, ignore)
        predict_group = _with_models(model) if model else _with_imagenet(str(imagenet), weights, class_names)
        each_photo = found_photos.read_photos(found, scratch, allow_private)
        while group := list(itertools.islice(each_photo, _GROUP)):
            made = predict_group([name for name, _ in group], [data for _, data in group])
            if target is not None:
                for row, (_, data) in zip(made[: _MOST_TILES - len(tiles)], group, strict=False):
                    pixels = None if isinstance(data, str) else thumbnails.thumbnail(data, _TILE_SIDE)
                    tiles.append(tile_of(row, pixels))
            rows += made
            status.update(f"{len(rows)} of {found.count} photos")
    if json_:
        print(predictions.rows_to_json(rows, model or [f"imagenet:{imagenet}"], found.skipped))
    elif csv:
        print(predictions.rows_to_csv(rows), end="")
    else:
        display.show_predictions(rows)
    display.show_skipped(found.skipped)
    if target is not None:  # last: if it cannot be written, the predictions are printed already
        storage.write_bytes(target, contact_sheet.draw_sheet(contact_sheet.in_rows(tiles, _COLUMNS), _TILE_SIDE))
        rest = f" (the first {len(tiles)} of {len(rows)} photos)" if len(tiles) < len(rows) else ""
        err.print(f"Contact sheet: {target}{rest}")
    _require_one_readable(rows)


# From the names and contents of photos to a row of each.
_PredictGroup = Callable[[list[str], list[bytes | str]], "list[PhotoRow]"]


def _with_models(models: list[str]) -> _PredictGroup:
    from catdog.inference import bundle, novelty
    from catdog.reporting import predictions

    predictor = load_predictor(models)
    classes = predictor.info.class_names
    saved = [bundle.read_info(model) for model in models]
    if not all(map(novelty.has_statistics, saved)):
        err.print(f"Pictures of neither {classes[0]} nor {classes[1]} are not recognised: {_why_not_known(saved)}")
        return lambda names, files: predictions.photo_rows(names, predictor.predict_files(files), classes)
    scorer = novelty.NoveltyScorer(saved)
    return lambda names, files: predictions.photo_rows(
        names, predictor.predict_files(files), classes, scorer.scores(files)
    )


def _why_not_known(bundles: list[SavedBundle]) -> str:
    """Why a model cannot tell that a photo is of neither class."""
    from catdog.inference import bundle

    if any(saved.info.onnx != bundle.VERIFIED for saved in bundles):
        return "that takes a model with an ONNX file"
    return "the model has no statistics of its training photos, as it is older or was trained on too few"


def _with_imagenet(name: str, weights: str | None, class_names: str | None) -> _PredictGroup:
    from catdog.reporting import predictions

    # Keras says on standard output what it downloads.
    with contextlib.redirect_stdout(sys.stderr):
        _load_tensorflow()
        from catdog.inference.imagenet import ImageNetClassifier

        classifier = ImageNetClassifier(name, weights, class_names)
    return lambda names, files: predictions.likeliest_rows(names, classifier.predict_files(files))


def explain(
    photos: Photos,
    model: Models,
    out_: Annotated[
        str,
        typer.Option(
            "--out", help="PNG that shows each photo beside its heat map; or a folder, for a picture of each photo."
        ),
    ] = "explanation.png",
    class_: Annotated[
        str | None, typer.Option("--class", help="Class that is explained. Default: the likelier one of each photo.")
    ] = None,
    ignore: Ignore = None,
    allow_private: AllowPrivate = False,
) -> None:
    """Show which parts of photos speak for a class, as a heat map over each (Grad-CAM)."""
    from catdog import storage
    from catdog.data import photos as found_photos
    from catdog.data import thumbnails
    from catdog.inference import explanation
    from catdog.reporting import contact_sheet, predictions
    from catdog.reporting.contact_sheet import Tile

    one_picture = out_.lower().endswith(".png")
    target = png_target(out_, "--out") if one_picture else storage.absolute_output(out_, "--out")
    if not one_picture and storage.kind(target) == "file":
        raise UsageError(f"--out received {out_!r}, expected the name of a .png file or a folder")
    rows: list[PhotoRow] = []
    shown: list[Tile] = []
    taken: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, err.status("Explaining…") as status:
        scratch = Path(folder)
        found = found_photos.find_photos(photos, scratch, ignore)
        if one_picture and found.count > _MOST_TILES // 4:
            raise UsageError(
                f"--out received {out_!r} for {found.count} photos, more than the {_MOST_TILES // 4} that fit into one "
                "picture; expected a folder"
            )
        predictor = load_predictor(model, tensorflow=True)
        names = predictor.info.class_names
        if class_ is not None and class_ not in names:
            raise UsageError(f"--class received {class_!r}, expected {' or '.join(names)}")
        explainer = explanation.Explainer.load(model)
        for name, data in found_photos.read_photos(found, scratch, allow_private):
            row = predictions.photo_rows([name], predictor.predict_files([data]), names)[0]
            rows.append(row)
            status.update(f"{len(rows)} of {found.count} photos")
            if row.class_name is None or isinstance(data, str):
                continue
            explained = class_ or row.class_name
            heat = explainer.heat_map(data, names.index(explained))
            if not heat.any():
                row.remarks.append(f"nothing speaks for {explained}")
            pixels = thumbnails.thumbnail(data, _EXPLAINED_SIDE, enlarge=True)
            assert pixels is not None  # it was predicted
            hot = explanation.overlay_heat(pixels, heat)
            if one_picture:
                caption = tile_of(row, pixels)
                shown += [caption, Tile(hot, [f"speaks for {explained}"])]
            else:
                storage.write_bytes(storage.join(target, _free_name(name, taken)), thumbnails.encode_png(hot))
        if shown:
            storage.write_bytes(target, contact_sheet.draw_sheet(contact_sheet.in_rows(shown, 4), _EXPLAINED_SIDE))
    display.show_predictions(rows)
    display.show_skipped(found.skipped)
    _require_one_readable(rows)
    err.print(f"Explanations: {target}")


def _free_name(name: str, taken: set[str]) -> str:
    """A name for a photo's picture in a folder: its own stem, numbered where another photo has the same."""
    stem = re.sub(r"[^\w .()-]", "_", PurePosixPath(name).stem)[-100:].lstrip(".") or "photo"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    free = next(each for each in itertools.chain([stem], numbered) if each.lower() not in taken)
    taken.add(free.lower())
    return f"{free}.png"


def _require_one_readable(rows: list[PhotoRow]) -> None:
    if all(row.status == "unreadable" for row in rows):
        raise CatdogError(f"none of the photos could be read: {rows[0].file}: {'; '.join(rows[0].remarks)}")


def load_predictor(models: list[str], tensorflow: bool = False) -> Predictor:
    """Loads models for a few photos; each photo gets the bits that `catdog score` on a CPU gives it.

    Args:
        models: URIs of runs or of bundles.
        tensorflow: whether this process will use TensorFlow for something else.
    """
    from catdog.inference import bundle, engines
    from catdog.inference.predictor import Predictor

    saved = [bundle.read_info(model) for model in models]
    engine = bundle.merge_infos([each.info for each in saved]).engines[0]
    if tensorflow or engine == "tensorflow":
        _load_tensorflow()
    # ONNX Runtime gives the same bits in batches of every size, so no more images are computed than there are.
    return Predictor.load(saved, engine, batch_size=engines.CHUNK if engine == "onnx" else _GROUP)


def _load_tensorflow() -> None:
    """Imports TensorFlow with standard error closed, where its libraries write whatever they are told."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        importlib.import_module("tensorflow")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def png_target(path: str, option: str) -> str:
    """The URI of a picture to be written, which must be named so."""
    from catdog import storage

    target = storage.absolute_output(path, option)
    if not storage.name(target).lower().endswith(".png") or storage.kind(target) == "folder":
        raise UsageError(f"{option} received {path!r}, expected the name of a .png file")
    return target


def tile_of(row: PhotoRow, pixels: object) -> Tile:
    """A photo on the contact sheet: the class and its probability, the file's name, and what is odd."""
    import numpy as np

    from catdog.reporting.contact_sheet import Tile

    is_novel = row.novelty is not None and row.novelty > 1
    said = (
        "unreadable" if row.probability is None else f"{'neither? ' * is_novel}{row.class_name} {row.probability:.1%}"
    )
    captions = [said, row.file.rpartition("/")[2] or row.file]
    if len(row.probabilities) > 2:
        captions += [f"{name} {share:.1%}" for name, share in row.probabilities.items() if name != row.class_name]
    if row.remarks:
        captions.append("; ".join(row.remarks))
    return Tile(pixels if isinstance(pixels, np.ndarray) else None, captions, row.probability)
