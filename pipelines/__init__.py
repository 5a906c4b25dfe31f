"""Prefect flows. A flow names its steps and passes values; it computes nothing."""

from tasks.environment import set_service_defaults

# Here, before any flow module can import Prefect, which reads its settings at import.
set_service_defaults()
