"""Writes the tables and the plot of a suite's measurements."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

NAMES = {
    "ours": "medpix-finetune",
    "ours-two-processes": "medpix-finetune",
    "efficiency": "medpix-finetune",
    "plain": "plain transformers loop",
    "trl": "TRL SFTTrainer",
    "ours/packing": "medpix-finetune, packing off",
    "ours/vision_cache": "medpix-finetune, vision cache off",
    "answer-ours": "medpix-finetune",
    "answer-batched": "model.generate in batches of 16, and a second pass",
    "answer-one-by-one": "the same, one by one",
    "read-cold": "cold cache",
    "read-warm": "warm cache",
}

PLOTTED = (
    "LoRA, 10 questions per image",
    "SFT, 10 questions per image",
    "LoRA, large vocabulary",
    "Answers, 10 questions per image",
)


def measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of measurements that did not fail."""
    return [record for record in records if "error" not in record]


def comparisons(records: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Groups the records of measurements that did not fail by title and contender."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in measured(records):
        grouped[record["title"]][record["contender"]].append(record)
    return grouped


def write_report(records: list[dict[str, Any]], directory: Path, suite: str) -> None:
    """Writes `{suite}.md` and `{suite}.png`."""
    grouped = comparisons(records)
    lines = [f"# Measured: {suite}", "", *{record["machine"]: None for record in measured(records)}, ""]
    for title, contenders in grouped.items():
        lines += _table(title, contenders)
    lines += _failures(records)
    (directory / f"{suite}.md").write_text("\n".join(lines) + "\n")
    _plot(grouped, directory / f"{suite}.png")


def _failures(records: list[dict[str, Any]]) -> list[str]:
    failed = [record for record in records if "error" in record]
    return [
        line
        for record in failed
        for line in (f"## Failed: {record['title']}, {record['contender']}", "", "```", record["error"], "```", "")
    ]


def _table(title: str, contenders: dict[str, list[dict[str, Any]]]) -> list[str]:
    reference = next(iter(contenders.values()))
    lines = [
        f"## {title}",
        "",
        "| | per second | with the vision cache, 3 epochs | 1 epoch | min - max | times | peak MB | tokens/s | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, records in contenders.items():
        speed, three, one = (_median(records, key) for key in ("samples_per_second", "effective_per_second", "epoch_1"))
        spread = [record["samples_per_second"] for record in records]
        pairs = [(a, b) for a in reference for b in records if a["repeat"] == b["repeat"]]
        ratios = [a["effective_per_second"] / b["effective_per_second"] for a, b in pairs]
        times = f"{statistics.median(ratios):.2f}" if ratios else ""
        lines.append(
            f"| {NAMES[name]} | {speed:.2f} | {three:.2f} | {one:.2f} | {min(spread):.2f} - {max(spread):.2f} "
            f"| {times} | {_median(records, 'peak_mb'):.0f} | {_optional(records, 'tokens_per_second', '.0f')} "
            f"| {_optional(records, 'model_flops_utilisation', '.1%')} |"
        )
    if "flops_share" in reference[0]:
        lines += ["", f"Achieved: {100 * _median(reference, 'flops_share'):.0f} % of the machine's matrix product."]
    return [*lines, ""]


def _median(records: list[dict[str, Any]], key: str) -> float:
    return statistics.median(record[key] for record in records)


def _optional(records: list[dict[str, Any]], key: str, form: str) -> str:
    """Returns the median of what only some contenders measure."""
    known = [record[key] for record in records if record.get(key) is not None]
    return format(statistics.median(known), form) if known else ""


def _plot(grouped: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = [title for title in PLOTTED if title in grouped]
    if not titles:
        return
    figure, axes = pyplot.subplots(len(titles), 1, figsize=(8, 1.3 * len(titles) + 0.5), squeeze=False)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        names = list(grouped[title])
        values = [_median(grouped[title][name], "effective_per_second") for name in names]
        bars = axis.barh([NAMES[name] for name in names], values, color=["#1b6ca8", *["#b9c4cc"] * (len(names) - 1)])
        axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.set_title(title, loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    figure.supxlabel(
        "samples or answers per second (higher is better), with the vision cache's filling over 3 epochs",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
