"""Writes the model card of a registered version: data, evaluation, intended use, licences."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from tasks.markdown import code, escaped, link
from tasks.registry.versions import CHAMPION
from tasks.run import Run
from vlm_core.config import Config, DatasetConfig
from vlm_core.evaluation.metrics import METRICS, PRIMARY, Use, metrics_in
from vlm_core.evaluation.result_names import DATASET, MODEL, with_interval
from vlm_core.hub import is_repository_id
from vlm_core.plain_text import without_secrets


def model_card(run: Run, base_model: Path, result: dict[str, Any]) -> str:
    """Returns the card as Markdown. It has numbers but no text of the data."""
    config = run.config
    base = config.model.pretrained_model_name_or_path
    return "\n".join(
        [
            f"{_link(base, 'models')} ({tuning(config)}), trained on {_trained_on(config)} to answer questions about "
            f"medical images. Run `{run.run_id}`, seed {config.rng.seed}.",
            "",
            "### Evaluation",
            *_evaluation(result),
            "",
            "### Use",
            "For research. It is not a medical device and its answers are not diagnoses: a fluent answer can be wrong. "
            "Visual reliance says how much of a score comes from looking at the image.",
            "",
            "### Licences",
            f"Base model: {_licence(base_model)}. Data: the terms of {_sources(config)}, and those of its images.",
        ]
    )


def _trained_on(config: Config) -> str:
    """Returns the datasets that train, each with its rows and commit."""
    return ", ".join(
        f"{_link(data.path_or_dataset, 'datasets')} ({code(data.split)}{_at(data.revision)})"
        for data in _training(config)
    )


def _sources(config: Config) -> str:
    return ", ".join(_link(data.path_or_dataset, "datasets") for data in _training(config))


def _training(config: Config) -> list[DatasetConfig]:
    return [config.datasets[name] for name in config.trained]


def model_description(name: str, alias: str) -> str:
    """Returns the description of a registered model: its versions, its aliases, how to load one."""
    return f"""Answers questions about medical images. Each version is one training run of medpix-finetune; its \
page has the model card: data, scores with intervals, intended use, licences.

- Alias `{alias}`: the newest version.
- Alias `{CHAMPION}`: the version that scored best on the same questions, or that a person promoted. \
`python -m tasks.registry history {name}` shows who changed it, when and why; the tags `champion.history...` store this.

Load it where medpix-finetune is installed and `MLFLOW_TRACKING_URI` is the address of this server:

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}")
```

Its input is a data frame with the columns `image` (a file in base64) and `question`.
"""


def _evaluation(result: dict[str, Any]) -> list[str]:
    limit = f" Limited to {result['limit']} questions: no basis for a promotion." if result["limit"] else ""
    names = list(result["scores"])
    rows = [
        f"| {metric.title} | " + " | ".join(with_interval(result["scores"][name][metric.name]) for name in names) + " |"
        for metric in metrics_in(result["scores"][MODEL], Use.CARD)
    ]
    by_case = [
        f"- cases {group}: {entry['examples']} questions, {METRICS[PRIMARY].words} "
        f"{with_interval(entry['scores'][MODEL][PRIMARY])}"
        for group, entry in result["groups"]["case"].items()
    ]
    by_dataset = [
        f"- dataset {escaped(group)}: {entry['examples']} questions, {METRICS[PRIMARY].words} "
        f"{with_interval(entry['scores'][MODEL][PRIMARY])}"
        for group, entry in result["groups"].get(DATASET, {}).items()
    ]
    return [
        f"**Verdict**: this model {escaped(result['verdict']['text'], longest=500)}.",
        "",
        f"{result['examples']} questions on {result['cases']} cases, {_intervals(result)}; data "
        f"`{result['dataset_fingerprint']}`.{limit}",
        "",
        f"| | {' | '.join(map(escaped, names))} |",
        "|---" * (len(names) + 1) + "|",
        *rows,
        "",
        *(["Each dataset:", *by_dataset, ""] if by_dataset else []),
        "Overlap with the training split:",
        *by_case,
        f"- questions about images that are in the training split too: {result['examples_with_images_of_training']}",
    ]


def _intervals(result: dict[str, Any]) -> str:
    """Returns a clause about the intervals of the scores: fewer than 10 cases give none."""
    has_intervals = result["scores"][MODEL][PRIMARY]["low"] is not None
    return "with 95 % intervals over cases" if has_intervals else "too few cases for intervals"


def tuning(config: Config) -> str:
    """Returns the kind of fine-tuning in words."""
    if config.peft is None:
        return "full fine-tuning"
    base = "" if config.model.quantization == "none" else f", over {config.model.quantization} weights"
    return f"LoRA, rank {config.peft.dim}{base}"


def _link(name: str, kind: str) -> str:
    page = f"https://huggingface.co/{'datasets/' if kind == 'datasets' else ''}{name}"
    return link(name, page) if is_repository_id(name) else code(without_secrets(name))


def _at(revision: str | None) -> str:
    return f", revision {code(revision)}" if revision else ""


def _licence(base_model: Path) -> str:
    """Returns the licence that the base model's card names."""
    card = base_model / "README.md"
    try:
        licence = ModelCard.load(card).data.get("license") if card.is_file() else None
    except (ValueError, yaml.YAMLError):  # an unreadable card names no licence
        licence = None
    return escaped(licence or "not stated in its directory")
