"""Figures of the page: numbers in, inline SVG out, the same bytes each time.

Colours are written as the page's CSS variables and text in the page's font, so that a figure is right on a light page,
on a dark one and on paper. Each has a label that says in words what it shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from catdog.evaluation.diagnostics import Bin, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib writes, and what the page puts in their place.
_INK, _LINE, _FIRST, _SECOND, _MUTED = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
    _MUTED: "var(--muted)",
}
_WIDTH, _HEIGHT = 360, 262
# Of the figure, in points: room for the names of the axes.
_LEFT, _RIGHT, _BOTTOM, _TOP = 50, 12, 42, 26
_POINTS = 600
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "catdog",
    "text.parse_math": False,  # a class may be named $x
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 10.5,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "none",
}


def training_curve(
    train: Sequence[float | None], valid: Sequence[float | None], kept: int | None, what: str, label: str
) -> str:
    """Draws a figure of each epoch, of training and of validation.

    Args:
        train: of each epoch; None where unknown.
        valid: likewise.
        kept: the epoch that is kept, counted from 1.
        what: name of the figure, such as "log loss".
        label: what the drawing shows, for people who cannot see it.

    Returns:
        The SVG; "" where nothing is known.
    """
    if all(value is None for value in (*train, *valid)):
        return ""

    def draw(axes: Axes) -> None:
        for values, name, style in ((train, "training", "--"), (valid, "validation", "-")):
            if any(value is not None for value in values):
                shown = [np.nan if value is None else value for value in values]
                colour = _SECOND if name == "validation" else _FIRST
                axes.plot(range(1, len(shown) + 1), shown, style, color=colour, marker="o", markersize=3.5, label=name)
        if kept is not None and 1 <= kept <= len(valid):
            axes.axvline(kept, color=_MUTED, linewidth=1, linestyle=":", label="kept")
        axes.set(xlabel="epoch", ylabel=what, xlim=(0.5, max(len(train), len(valid)) + 0.5))
        _whole_numbers(axes)

    return _svg(draw, label)


def reliability(before: list[Bin], after: list[Bin], name: str, label: str) -> str:
    """Draws the share of a class against the probability that was given for it.

    Args:
        before: bins of the probabilities before calibration; none where there is no calibration.
        after: of those that are judged.
        name: of the class.
        label: what the drawing shows, for people who cannot see it.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":", label="perfect")
        for bins, what, colour, style in ((before, "before", _FIRST, "--"), (after, "after", _SECOND, "-")):
            if not bins:
                continue
            x, y = [each.predicted for each in bins], [each.observed for each in bins]
            if what == "after":
                axes.vlines(x, [b.low for b in bins], [b.high for b in bins], color=colour, linewidth=5, alpha=0.25)
            axes.plot(x, y, style, color=colour, linewidth=1.3, label=f"{what} calibration" if before else "the model")
            most = max(b.n for b in bins)
            axes.scatter(x, y, [10 + 60 * (b.n / most) ** 0.5 for b in bins], color=colour, zorder=3)
        axes.set(
            xlabel=f"probability of {name}", ylabel=f"share that is {name}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )

    return _svg(draw, label)


def histogram(values: dict[str, np.ndarray], name: str, label: str, shares: bool = False) -> str:
    """Draws how many images have which probability, on a logarithmic scale.

    Args:
        values: by what the images are, at most two kinds, probabilities N.
        name: the class that the probabilities are of.
        label: what the drawing shows, for people who cannot see it.
        shares: draw the share of each kind in percent, for kinds of different size.
    """
    edges = np.linspace(0, 1, 21)

    def draw(axes: Axes) -> None:
        least = np.inf
        for (what, each), colour in zip(values.items(), (_FIRST, _SECOND), strict=False):
            heights = np.histogram(each, edges)[0] * (100 / max(1, len(each)) if shares else 1.0)
            floor = 70 / max(1, len(each)) if shares else 0.7  # an image is more than none
            least = min(least, floor)
            seen = np.maximum(heights, floor / 10)
            axes.stairs(seen, edges, baseline=floor / 10, fill=True, color=colour, alpha=0.3)
            axes.stairs(seen, edges, baseline=floor / 10, color=colour, linewidth=1.6, label=what)
        axes.set(xlabel=f"probability of {name}", ylabel="share of images, %" if shares else "images", xlim=(0, 1))
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(least, 1e6))
        _plain_numbers(axes.yaxis)

    return _svg(draw, label)


def roc(curves: Curves, label: str) -> str:
    """Draws the ROC curve, and its corner enlarged where the curve is there."""
    x, y = _thinned(curves.false_positive_rate, curves.true_positive_rate)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        axes.plot(x, y, color=_SECOND)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if np.trapezoid(y, x) > 0.97:
            _enlarge(axes, x, y, (-0.003, 0.1), (0.9, 1.003))

    return _svg(draw, label, legend=False)


def precision_recall(curves: Curves, share: float, label: str) -> str:
    """Draws precision against recall, and its corner enlarged where the curve is there.

    Args:
        curves: of `diagnostics`.
        share: of label 1 among the images, which is the precision of guessing.
        label: what the drawing shows, for people who cannot see it.
    """
    x, y = _thinned(curves.recall, curves.precision)

    def draw(axes: Axes) -> None:
        axes.axhline(share, color=_MUTED, linewidth=1, linestyle=":")
        axes.plot(x, y, color=_SECOND)
        axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if curves.average_precision > 0.97:
            _enlarge(axes, x, y, (0.9, 1.003), (0.9, 1.003))

    return _svg(draw, label, legend=False)


def clip_curve(clips: np.ndarray, losses: np.ndarray, used: float, label: str) -> str:
    """Draws the log loss against the clip.

    Args:
        clips: in (0, 0.5), ascending, C.
        losses: of them, in nats, C.
        used: the clip of the probabilities that were written.
        label: what the drawing shows, for people who cannot see it.
    """

    def draw(axes: Axes) -> None:
        axes.plot(clips, losses, color=_SECOND, label="log loss with this clip")
        axes.axvline(used, color=_FIRST, linewidth=1.4, linestyle="--", label=f"clip used: {used:.2g}")
        axes.set(xlabel="clip (least distance from 0 and 1)", ylabel="log loss")
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.set_ylim(0, min(losses.max(), 4 * losses.min()) * 1.15 + 1e-9)

    return _svg(draw, label)


def loss_shares(shares: np.ndarray, marked: int, label: str) -> str:
    """Draws the share of the log loss that the worst images have.

    Args:
        shares: of the worst 1, 2, … images, N, N at least 1.
        marked: number of images whose share is marked.
        label: what the drawing shows, for people who cannot see it.
    """
    counts = np.unique(np.geomspace(1, len(shares), _POINTS).round().astype(int))

    def draw(axes: Axes) -> None:
        axes.plot(counts, 100 * shares[counts - 1], color=_SECOND, marker="o" if len(counts) == 1 else None)
        axes.plot([marked], [100 * shares[marked - 1]], "o", color=_FIRST, label=f"the {marked} worst")
        axes.set(xlabel="images, the worst first", ylabel="share of the log loss, %", ylim=(0, 104))
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)

    return _svg(draw, label)


def board(rows: list[tuple[str, float]], expected: tuple[float, float, float], label: str) -> str:
    """Draws an expected log loss with its interval among others' log losses.

    Args:
        rows: name and log loss of each.
        expected: the log loss, and its interval's ends.
        label: what the drawing shows, for people who cannot see it.
    """

    def draw(axes: Axes) -> None:
        places = range(len(rows), 0, -1)
        axes.plot([value for _, value in rows], places, "o", color=_FIRST)
        middle, low, high = expected
        axes.hlines([0], [max(low, 1e-4)], [high], color=_SECOND, linewidth=6, alpha=0.3)
        axes.plot([middle], [0], "D", color=_SECOND)
        axes.set(xlabel="log loss (lower is better)", ylim=(-0.6, len(rows) + 0.6))
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.set_yticks([0, *places], ["this submission", *(name for name, _ in rows)])
        axes.grid(axis="y", visible=False)

    return _svg(draw, label, width=400, height=190, left=142, legend=False)


def _svg(
    draw: Callable[[Axes], None],
    label: str,
    width: int = _WIDTH,
    height: int = _HEIGHT,
    left: int = _LEFT,
    legend: bool = True,
) -> str:
    """Lets a function draw on axes, and returns the SVG element."""
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72))
        top = _TOP if legend else 12
        inner = (left / width, _BOTTOM / height, (width - left - _RIGHT) / width, (height - _BOTTOM - top) / height)
        axes = figure.add_axes(inner)
        draw(axes)
        if legend:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, borderaxespad=0, columnspacing=1.2)
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), label)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """The look, whatever settings of matplotlib this user has; and none of its warnings."""
    # That no folder for its cache can be written, or that a font lacks a sign which the reader's browser has.
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="matplotlib")
            warnings.filterwarnings("ignore", "Glyph")
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            yield
    finally:
        logger.setLevel(level)


def _inline(text: str, label: str) -> str:
    """Makes an element for a page of a whole SVG file."""
    head, _, body = text[text.index("<svg") :].partition(">")
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', head)
    body = body.replace("xlink:href", "href")
    # An id is for one element of a page, so those that nothing points to go, and the others get the figure's own mark.
    mark = hashlib.sha256((label + body).encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda id_: f' id="{mark}-{id_[1]}"' if id_[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{mark}-", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg class="plot" {view[0] if view else ""} role="img" aria-label="{escape(label)}">{body.strip()}'


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve of so many points that more would not be seen."""
    if len(x) <= _POINTS:
        return x, y
    chosen = np.linspace(0, len(x) - 1, _POINTS).round().astype(int)
    return x[chosen], y[chosen]


def _enlarge(
    axes: Axes, x: np.ndarray, y: np.ndarray, x_range: tuple[float, float], y_range: tuple[float, float]
) -> None:
    inner = axes.inset_axes((0.36, 0.14, 0.6, 0.62), xlim=x_range, ylim=y_range)
    inner.plot(x, y, color=_SECOND)
    inner.set_title("the corner, enlarged", fontsize=9.5, loc="left")


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _plain_numbers(axis: Any) -> None:
    """Numbers such as 0.001 at a logarithmic axis, where matplotlib would write powers; few, if it is a short one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / max(low, 1e-300) < 50 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
