"""One thin Prefect task a step, the launcher of the heavy jobs, and everything that knows MLflow."""
