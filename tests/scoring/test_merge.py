"""Parts put together: all of a split, and of a large one with labels a sample that its report is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import saved_info

from catdog.data.catalog import Catalog
from catdog.evaluation import metrics
from catdog.evaluation.calibration import Applied
from catdog.inference.bundle import SavedBundle
from catdog.inference.predictor import Predictions
from catdog.inference.provenance import Provenance
from catdog.reporting import details, page, render, report
from catdog.reporting.page import Source
from catdog.reporting.pictures import Scores
from catdog.reporting.report import Subject
from catdog.scoring import parts, results
from catdog.scoring.parts import Part


@pytest.fixture
def finished(drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts of the validation split, in which the second image could not be read."""
    monkeypatch.setattr(parts, "PART_ROWS", 5)
    rows = drawn.split("valid")
    cut = parts.cut_split("valid", rows, 2, ["origin"], str(tmp_path))
    logits = np.random.default_rng(0).normal(0, 3, len(rows)).astype(np.float32)
    logits[1] = np.nan
    probabilities = np.where(np.isnan(logits), 0.5, metrics.calibrated(logits, clip=1e-6))
    for part in cut:
        of = slice(part.start, part.stop)
        statuses = ["unreadable" if np.isnan(each) else "ok" for each in logits[of]]
        made = Predictions(logits[of], probabilities[of], statuses, [""] * part.count)  # type: ignore[arg-type]
        parts.write_part(part.uri, part.rows, made)
    return cut


def test_all_images_are_judged_up_to_the_bound(
    finished: list[Part], drawn: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = drawn.count("valid")
    monkeypatch.setattr(report, "MOST_JUDGED", count)
    merged = results.merge_parts(finished, drawn)
    assert merged.judged is not None
    assert merged.judged["key"].to_pylist() == drawn.split("valid")["key"].to_pylist()
    assert merged.judged_rows.tolist() == [*range(count)]
    assert merged.counts == {"ok": count - 1, "recovered": 0, "unreadable": 1}


@pytest.mark.parametrize("most", [1, 7, 17])
def test_beyond_the_bound_the_report_is_of_a_sample(
    finished: list[Part], drawn: Catalog, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, count = results.merge_parts(finished, drawn), drawn.count("valid")
    monkeypatch.setattr(report, "MOST_JUDGED", most)
    merged = results.merge_parts(finished, drawn)
    assert merged.judged is not None
    assert full.judged is not None
    rows = merged.judged_rows
    assert len(rows) == most
    for stretch, row in enumerate(rows):  # one of each
        assert stretch * count // most <= row < (stretch + 1) * count // most
    assert merged.judged.to_pylist() == full.judged.take(rows).to_pylist()
    assert (merged.probabilities == full.probabilities).all()  # of all images, as the CSV has every one

    subject = Subject(saved_info(drawn), Provenance(), drawn, Applied(1.0, 1e-6, "none"))
    content = report.build_report({"valid": merged.judged}, {"valid": merged.counts}, subject, {"valid": rows})
    told = render.json_content(content)
    labels = drawn.split("valid")["label"].to_numpy()[rows]
    right = np.where(labels == 1, full.probabilities[rows], 1 - full.probabilities[rows])
    assert (told["n"], told["sampled_from"], told["unreadable"]) == (most, count, 1)
    assert told["log_loss"] == pytest.approx(-np.log(right).mean())

    scores = Scores("valid", drawn.split("valid"), merged.logits, merged.probabilities, 0, merged.unreadable)
    assert content.valid is not None
    shown = details.section_details(content.valid, scores, 0.5)
    places = {key: row for row, key in enumerate(drawn.split("valid")["key"].to_pylist())}
    text = page.render_page(
        Source("results.csv", "", content, {"valid": scores}, subject.info, [SavedBundle("/m", subject.info)], [], {})
    )
    assert f"The figures are of {most} of the split's {count} images" in text
    tiles = [tile for grid in shown.grids for tile in grid.tiles] + [tile for tile, _ in shown.worst]
    assert {places[tile.key] for tile in tiles} <= set(rows.tolist())
    for tile in tiles:
        row = places[tile.key]
        assert tile.uri == drawn.split("valid")["uri"][row].as_py()
        assert tile.truth == drawn.class_names[drawn.split("valid")["label"][row].as_py()]
        assert tile.share == pytest.approx(max(full.probabilities[row], 1 - full.probabilities[row]))


def test_a_sample_of_a_hundred_million_is_one_of_each_stretch() -> None:
    rows = report.judged_rows(100_000_000)
    assert len(rows) == report.MOST_JUDGED
    stretch = 100_000_000 / report.MOST_JUDGED
    assert np.abs(rows - (np.arange(len(rows)) + 0.5) * stretch).max() <= stretch / 2 + 1
    assert rows[-1] < 100_000_000
    assert 0.495 < ((rows / stretch) % 1).mean() < 0.505  # and anywhere in it
