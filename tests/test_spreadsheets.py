"""Cells that a spreadsheet would run: none is left, and every text comes back as it was."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np

from catdog import spreadsheets
from catdog.inference.predictor import Predictions
from catdog.reporting import predictions


def test_no_text_is_a_formula_and_each_comes_back() -> None:
    texts = ["".join(letters) for length in range(4) for letters in itertools.product("=+-@\t\r'x\n\",", repeat=length)]
    written = spreadsheets.csv_text([[text, "", -1.5] for text in texts])
    cells = list(csv.reader(io.StringIO(written, newline="")))
    assert not [cell for cell, _, _ in cells if cell[:1] in tuple("=+-@\t\r")]
    assert [spreadsheets.unescape_cell(cell) for cell, _, _ in cells] == texts
    assert {number for _, _, number in cells} == {"-1.5"}


def test_predictions_of_photos_with_such_names_and_classes() -> None:
    found = Predictions(np.float32([-2.0]), np.array([0.1]), ["recovered"], ["@odd"])
    text = predictions.rows_to_csv(predictions.photo_rows(["=1+1.jpg"], found, ("-cat", "+dog")))
    header, row = csv.reader(io.StringIO(text))
    assert row[:2] + row[-1:] == ["'=1+1.jpg", "'-cat", "'@odd"]
    assert [float(cell) for cell in row[2:5]] == [0.9, 0.9, 0.1]
    assert header[3:5] == ["probability_-cat", "probability_+dog"]
