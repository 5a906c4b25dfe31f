"""The groups of the parameter forms in Prefect's UI: sections of the config whose empty fields come from the recipe."""

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

ModelForm = form_of(ModelConfig)
DatasetForm = form_of(DatasetConfig)
StepSchedulerForm = form_of(StepSchedulerConfig)
OptimizerForm = form_of(OptimizerConfig)
PeftForm = form_of(PeftConfig)
ComputeForm = form_of(ComputeConfig)
EvaluationForm = form_of(EvaluationConfig)
RegistryForm = form_of(RegistryConfig)
