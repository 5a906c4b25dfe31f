"""One thin Prefect task a step, the launcher of the heavy jobs, and everything that knows MLflow."""

from tasks.services.environment import set_service_defaults

set_service_defaults()
