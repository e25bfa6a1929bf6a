"""`catdog predict` and `catdog explain`: a few photos of one's own, without a data set and without Ray."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catdog.cli import display
from catdog.cli.display import err
from catdog.errors import CatdogError, UsageError

if TYPE_CHECKING:
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
_MOST_TILES, _COLUMNS, _TILE_SIDE = 400, 6, 220
# Photos that are read and predicted before the next ones are.
_GROUP = 64


def predict(
    photos: Photos,
    model: Models,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    sheet: Annotated[str | None, typer.Option(help="PNG to write: a contact sheet of the photos.")] = None,
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
    target = None if sheet is None else png_target(sheet, "--sheet")
    rows: list[PhotoRow] = []
    tiles: list[Tile] = []
    with tempfile.TemporaryDirectory() as folder, err.status("Predicting…") as status:
        scratch = Path(folder)
        found = found_photos.find_photos(photos, scratch, ignore)
        predictor = load_predictor(model)
        names: list[str] = []
        files: list[bytes | str] = []
        for name, data in found_photos.read_photos(found, scratch, allow_private):
            names.append(name)
            files.append(data)
            if len(names) < _GROUP and len(rows) + len(names) < found.count:
                continue
            made = predictions.photo_rows(names, predictor.predict_files(files), predictor.info.class_names)
            if target is not None:
                for row, each in zip(made[: _MOST_TILES - len(tiles)], files, strict=False):
                    pixels = None if isinstance(each, str) else thumbnails.thumbnail(each, _TILE_SIDE)
                    tiles.append(tile_of(row, pixels))
            rows += made
            names, files = [], []
            status.update(f"{len(rows)} of {found.count} photos")
        if target is not None:
            drawn = contact_sheet.draw_sheet(contact_sheet.in_rows(tiles, _COLUMNS), _TILE_SIDE)
            storage.write_bytes(target, drawn)
    if json_:
        print(predictions.rows_to_json(rows, model, found.skipped))
    elif csv:
        print(predictions.rows_to_csv(rows, predictor.info.class_names), end="")
    else:
        display.show_predictions(rows)
    display.show_skipped(found.skipped)
    if target is not None:
        rest = f" (the first {len(tiles)} of {len(rows)} photos)" if len(tiles) < len(rows) else ""
        err.print(f"Contact sheet: {target}{rest}")
    if all(row.status == "unreadable" for row in rows):
        raise CatdogError(f"none of the photos could be read: {rows[0].file}: {'; '.join(rows[0].remarks)}")


def load_predictor(models: list[str]) -> Predictor:
    """Loads models for a few photos; each photo gets the bits that `catdog score` on a CPU gives it."""
    from catdog.inference import bundle, engines
    from catdog.inference.predictor import Predictor

    saved = [bundle.read_info(model) for model in models]
    engine = bundle.merge_infos([each.info for each in saved]).engines[0]
    if engine == "tensorflow":
        engines.set_up(threads=1, gpu=False)
    # ONNX Runtime gives the same bits in batches of every size, so no more images are computed than there are.
    return Predictor.load(saved, engine, batch_size=engines.CHUNK if engine == "onnx" else _GROUP)


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

    said = "unreadable" if row.probability is None else f"{row.class_name} {row.probability:.1%}"
    captions = [said, row.file.rpartition("/")[2] or row.file, "; ".join(row.remarks)]
    return Tile(pixels if isinstance(pixels, np.ndarray) else None, captions, row.probability)
