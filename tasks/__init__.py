"""Prefect tasks, one thin task per step; the launchers of heavy jobs; and all code that uses MLflow."""

from tasks.services.environment import set_service_defaults

set_service_defaults()
