"""Shows how far the rows that were added since the champion differ from those that it was trained on."""

from pathlib import Path
from typing import Any

import mlflow
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from tasks.links import report_link
from tasks.markdown import escaped, link, table
from tasks.registry.register import FINGERPRINT
from tasks.registry.versions import find_champion
from tasks.trackers.mlflow_run import log_files
from tasks.watch import at_revisions, present_data, watched_name
from vlm_core.config import Config
from vlm_core.data.drift import drift_of
from vlm_core.data.drift_values import compare
from vlm_core.data.prepare import prepare_conversations
from vlm_core.home import medpix_home
from vlm_core.run_directory import REPORT

DRIFT = "drift"  # directory of the pages, and the folder in the champion's MLflow run


@task(tags=["watch"], persist_result=False)
def show_drift(config: Config) -> list[dict[str, Any]]:
    """Writes the page about drift and shows it in Prefect and MLflow; returns what `drift_of` found, [] if nothing.

    Compares with the champion's data, or that of the newest version. Logs the reason if it cannot compare.
    """
    logger, name = get_run_logger(), watched_name(config)
    version = _trained_version(name)
    if version is None:
        logger.info("no drift is shown: no version of %s says which data it was trained on", name)
        return []
    revisions = present_data(config)
    if FINGERPRINT not in revisions and all(version.tags.get(key) == value for key, value in revisions.items()):
        return []
    trained = medpix_home() / "cache" / "conversations" / version.tags[FINGERPRINT]
    if not trained.is_dir():
        logger.warning(
            "no drift is shown: the data of version %s is not in this machine's cache (%s); run the watch where the "
            "training ran, or prepare that data again", version.version, trained,
        )  # fmt: skip
        return []
    present = prepare_conversations(at_revisions(config, revisions))[0]
    counts, quantities = compare(trained, present, with_texts=config.report.images)
    found = [drift_of(quantity, config.rng.seed) for quantity in quantities]
    if found:
        about = {"name": name, "version": version.version, "trained": trained.name, "present": present.name, **counts}
        _publish(version.run_id, about, found)
    return found


def _trained_version(name: str) -> Any:
    """Returns the champion, or else the newest version, of those that say what they were trained on."""
    champion = find_champion(name)
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")
    known = [version for version in versions if FINGERPRINT in version.tags]
    return max(known, key=lambda v: (str(v.version) == champion, int(v.version)), default=None)


def _publish(run_id: str | None, about: dict[str, Any], found: list[dict[str, Any]]) -> None:
    from vlm_core.pages.drift import TITLES, drift_rows, summary_of, write_drift  # lazy: imports matplotlib

    directory: Path = medpix_home() / DRIFT / about["name"]
    write_drift(about, found, directory / DRIFT / REPORT)
    address = (directory / DRIFT / REPORT).as_uri()
    if run_id:  # a version that somebody made by hand has none
        log_files(run_id, [directory / DRIFT / REPORT], DRIFT)
        address = report_link(run_id, directory, DRIFT)
    rows = [[escaped(cell) for cell in row] for row in drift_rows(found)]
    summary = f"{summary_of(found)} {about['new_rows']} new rows, {about['new_cases']} cases."
    get_run_logger().info("%s %s", summary, address)
    page = f"{escaped(summary, 1000)}\n\n{link('the page about drift', address)}\n\n{table(TITLES, rows)}"
    create_markdown_artifact(page, key="medpix-drift", description=about["name"])
