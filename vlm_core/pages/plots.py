"""Plots as SVG, for pages."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from vlm_core.files import published_file

WIDTH, HEIGHT = 5.6, 3.3  # inches
COLOURS = ("#0b6e8f", "#d9822b", "#8a8f98", "#6a4c93", "#2e7d32")
# Text stays text, in the page's font; ids depend on the content alone.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a mode may have dollars in its name
    "axes.spines.top": False,
    "axes.spines.right": False,
}

CHANNELS = ("#c0392b", "#2e7d32", "#1f5fbf")  # red, green and blue

NOT_SCORES = ("step", "loss", "supervised_tokens")  # of a validation's record

Interval = Mapping[str, float | None]


def bars(groups: Sequence[str], series: Mapping[str, Sequence[Interval]], label: str) -> str:
    """Returns bars of each of `series` in each group, with their intervals."""
    with rc_context(STYLE):
        figure, axes = _figure()
        width = 0.8 / len(series)
        for number, (name, intervals) in enumerate(series.items()):
            at = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
            values = np.array([_number(i["value"]) for i in intervals])
            errors = [[v - _number(i["low"]) for v, i in zip(values, intervals, strict=True)],
                      [_number(i["high"]) - v for v, i in zip(values, intervals, strict=True)]]  # fmt: skip
            axes.bar(at, values, width * 0.9, color=COLOURS[number % len(COLOURS)], label=name)
            axes.errorbar(at, values, np.clip(errors, 0, None), fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.05)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        figure.legend(frameon=False, loc="outside upper center", ncols=min(3, len(series)))
        return _svg(figure)


def histogram(series: Mapping[str, Mapping[str, Sequence[int]]], label: str) -> str:
    """Returns the shares of values by bin; each of `series` is `{"edges", "counts"}` of whole numbers."""
    with rc_context(STYLE):
        figure, axes = _figure()
        for number, (name, bins) in enumerate(series.items()):
            shares = np.array(bins["counts"]) / max(1, sum(bins["counts"]))
            edges = np.array(bins["edges"]) - 0.5  # a bin of one number lies around it
            axes.stairs(shares, edges, fill=True, alpha=0.35, color=COLOURS[number], label=name)
            axes.stairs(shares, edges, color=COLOURS[number], linewidth=1)
        low, high = axes.get_xlim()
        if high - low < 3:  # all values are the same: a narrow bar, not one of full width
            axes.set_xlim(low - 1.5, high + 1.5)
        axes.set_xlabel(label)
        axes.set_ylabel("share")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        return _svg(figure)


def shares(bins: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Returns horizontal bars of the share of each bin, for each of `series`."""
    with rc_context(STYLE):
        figure, axes = _figure()
        height = 0.8 / len(series)
        for number, (name, values) in enumerate(series.items()):
            at = np.arange(len(bins)) + (number - (len(series) - 1) / 2) * height
            axes.barh(at, values, height * 0.9, color=COLOURS[number], label=name)
        axes.set_yticks(range(len(bins)), bins)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.legend(frameon=False, loc="outside upper center", ncols=len(series))
        return _svg(figure)


def windows(edges: Sequence[float], counts: Sequence[int], ranges: Sequence[Sequence[float]]) -> str:
    """Returns the histogram of an image's stored values with the part that each window shows."""
    colours = CHANNELS if len(ranges) > 1 else (COLOURS[0],)
    with rc_context(STYLE):
        figure, axes = _figure()
        axes.stairs(np.sqrt(counts), edges, fill=True, color="#8a8f98", alpha=0.6)
        for number, ((low, high), colour) in enumerate(zip(ranges, colours, strict=False)):
            axes.axvspan(low, high, color=colour, alpha=0.12)
            axes.plot([low, high], [-0.04 * (number + 1)] * 2, color=colour, linewidth=4, solid_capstyle="butt",
                      transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
        axes.tick_params(axis="x", pad=4 + 10 * len(ranges))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_yticks([])
        axes.set_ylabel("pixels (root)")
        return _svg(figure)


def dots(series: Mapping[str, Interval], label: str) -> str:
    """Returns a dot with its interval for each of `series`, from top to bottom."""
    with rc_context(STYLE):
        figure, axes = _figure()
        for number, found in enumerate(series.values()):
            value, low, high = (_number(found[key]) for key in ("value", "low", "high"))
            colour = COLOURS[0] if number == 0 else COLOURS[2]
            axes.plot([low, high], [number, number], color=colour, linewidth=2, alpha=0.6)
            axes.plot([value], [number], "o", color=colour, markersize=7)
        axes.set_yticks(range(len(series)), list(series))
        axes.invert_yaxis()
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
        return _svg(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Returns a reliability diagram: the share of right answers by confidence, beside what it should be."""
    with rc_context(STYLE):
        figure, axes = _figure()
        axes.plot([0, 1], [0, 1], color=COLOURS[2], linewidth=1, linestyle="--", label="as it should be")
        most = max(entry["questions"] for entry in bins)
        confidence, accuracy = ([entry[key] for entry in bins] for key in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, color=COLOURS[0], linewidth=1)
        sizes = [20 + 180 * entry["questions"] / most for entry in bins]
        axes.scatter(confidence, accuracy, sizes, color=COLOURS[0], label="this model (area: questions)")
        axes.set(xlabel="confidence", ylabel="share right", xlim=(0, 1.03), ylim=(0, 1.05))
        axes.legend(frameon=False, loc="upper left")
        return _svg(figure)


def risk_coverage(curve: Sequence[Sequence[float]]) -> str:
    """Returns the share of wrong answers by the share of questions answered, the most confident first."""
    with rc_context(STYLE):
        figure, axes = _figure()
        covered, errors = zip(*curve, strict=True)
        axes.step(covered, errors, color=COLOURS[0], where="post")
        axes.set(xlabel="share of the questions answered", ylabel="share of these wrong", xlim=(0, 1.03))
        axes.set_ylim(0, max(0.05, 1.1 * max(errors)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        return _svg(figure)


def losses(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> str:
    """Returns the loss by optimizer step, of training and validation."""
    with rc_context(STYLE):
        return _svg(_loss_figure(training, validation))


def draw_losses(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the plot of `losses` as a PNG file."""
    with rc_context(STYLE), published_file(path) as aside:
        _loss_figure(training, validation).savefig(aside, format="png", dpi=130)


def _loss_figure(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _figure()
    for records, name, colour, marker in (
        (training, "training", COLOURS[0], ""),
        (validation, "validation", COLOURS[1], "o"),
    ):
        steps, values = [record["step"] for record in records], [_number(record["loss"]) for record in records]
        axes.plot(steps, values, color=colour, marker=marker, markersize=4, linewidth=1, label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(LogFormatter())  # the default writes powers as TeX, which the style does not parse
    _draw_scores(axes, validation)
    axes.legend(frameon=False)
    return figure


def _draw_scores(axes: Any, validation: Sequence[Mapping[str, Any]]) -> None:
    """Adds the scores of the validations, from 0 to 1, on an axis at the right; nothing if there are none."""
    names = [name for record in validation[:1] for name in record if name not in NOT_SCORES]
    if not names:
        return
    right = axes.twinx()
    for colour, name in zip(COLOURS[2:], names, strict=False):
        values = [_number(record.get(name)) for record in validation]
        steps = [record["step"] for record in validation]
        right.plot(steps, values, color=colour, marker="s", markersize=3, linewidth=1, linestyle="--")
        axes.plot(
            [], [], color=colour, marker="s", markersize=3, linewidth=1, linestyle="--", label=name.replace("_", " ")
        )
    right.set_ylim(0, 1)
    right.set_ylabel("score of some validation questions")
    right.spines["right"].set_visible(True)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    return figure, figure.subplots()


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    # Without the XML head, and without a size in points: the page sets the width.
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace(f'width="{WIDTH * 72:g}pt" height="{HEIGHT * 72:g}pt" ', "", 1)
