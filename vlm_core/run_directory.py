"""The contract between a heavy job and whoever waits for it: the files of a run directory, by name.

config.yaml         the resolved config of the run
metrics.jsonl       a line for each optimizer step, flushed
validation.jsonl    a line for each validation loss
epoch_E_step_S/     checkpoints, with the pointers LATEST and LOWEST_VAL beside them
result.json         what the job returns; written last
evaluation/         predictions.parquet, examples.png, and a result.json of its own
"""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
LATEST = "LATEST"
LOWEST_VAL = "LOWEST_VAL"
RESULT = "result.json"
EVALUATION = "evaluation"
PREDICTIONS = "predictions.parquet"
EXAMPLES = "examples.png"
