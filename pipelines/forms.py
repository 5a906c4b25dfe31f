"""The groups of the parameter forms in Prefect's UI: one per config section; empty fields keep the recipe's values.

`first` lists the fields that people change most. The page shows the other fields in a second tab.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from vlm_core.config import (
    ComputeConfig,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PeftConfig,
    RegistryConfig,
    StepSchedulerConfig,
)
from vlm_core.form import form_of

# One JSON editor in the form. A schedule or a program may still pass null.
Overrides = Annotated[Mapping[str, Any], BeforeValidator(lambda value: {} if value is None else value)]

DatasetForm = form_of(DatasetConfig, first=("path_or_dataset", "split"))
StepSchedulerForm = form_of(StepSchedulerConfig, first=("num_epochs", "max_steps", "global_batch_size"))
OptimizerForm = form_of(OptimizerConfig, first=("lr",))
ModelForm = form_of(ModelConfig, first=())
PeftForm = form_of(PeftConfig, first=())
ComputeForm = form_of(ComputeConfig, first=())
EvaluationForm = form_of(EvaluationConfig, first=())
RegistryForm = form_of(RegistryConfig, first=())
