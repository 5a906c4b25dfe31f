"""Prefect flows. A flow names its steps and passes values; it computes nothing."""

import tasks  # noqa: F401  Sets the services' defaults before any flow module imports Prefect, which reads them then.
