"""Fine-tuning of vision-language models on medical images. Knows no orchestrator and no tracker."""
