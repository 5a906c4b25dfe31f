"""Compares two models on the same questions, and reads the report: which is better, how sure is that, and why.

Run it in an empty folder: python compare_models.py. The two are an early and a late checkpoint of one short run. The
late one is far better, and the verdict still says that it has not learnt: it does not beat the commonest answer.
"""

import json
import subprocess
from pathlib import Path

DATA = ["--dataset.path_or_dataset", "builtin:phantom?images=120"]
LENGTH = ["--step_scheduler.max_steps", "60", "--step_scheduler.ckpt_every_steps", "10"]


def medpix(*words: str) -> None:
    """Runs a command, as you would type it."""
    print("\n$ medpix", *words, flush=True)
    subprocess.run(["medpix", *words], check=True)


medpix("finetune", "--config", "demo", *DATA, *LENGTH, "--checkpoint.checkpoint_dir", "run")

# Both models answer all questions of the validation split. The late one answers them with another case's images too.
early, late = "run/epoch_0_step_10", "run/LATEST"
against = ["--evaluation.compare_with", early, "--evaluation.controls", "shuffled"]
medpix("evaluate", "--checkpoint-path", late, *against, "--output-dir", "comparison")

result = json.loads(Path("comparison/result.json").read_text(encoding="utf-8"))
print(f"\n{result['verdict']['text']}\n")
for name, difference in result["differences"].items():
    found = difference["token_f1"]
    # An interval that excludes 0 is a difference; `detectable` is what these cases can show at all.
    print(f"token F1 against {name}: {found['value']:+.3f}, 95 % interval {found['low']} to {found['high']}, "
          f"p {found['p']}, detectable {found['detectable']}")  # fmt: skip
print(f"worth of the right image: {result['visual_reliance']['token_f1']['value']:+.3f} token F1")
print(f"open {Path('comparison/report.html').resolve()}: every question, sorted by gain and loss")
