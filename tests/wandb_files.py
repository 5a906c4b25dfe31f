"""Reads the files of wandb's offline mode with wandb's own reader."""

import json
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore


def wandb_runs(directory: Path) -> list[dict[str, Any]]:
    """Returns the W&B runs below `directory` in order: id, config, history, exit code."""
    runs = []
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        run: dict[str, Any] = {"config": {}, "history": [], "files": path.parent / "files"}
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                run |= {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name}
            for update in (*record.run.config.update, *record.config.update):
                run["config"][update.key] = json.loads(update.value_json)
            if record.HasField("history"):
                items = ((item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item)
                run["history"].append({key: json.loads(value) for key, value in items})
            if record.HasField("exit"):
                run["exit_code"] = record.exit.exit_code
        store._fp.close()
        runs.append(run)
    return runs
