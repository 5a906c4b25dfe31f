"""Prefect flows. A flow names its steps and passes values between them; it computes nothing itself."""

import tasks  # noqa: F401  Sets the services' defaults. Prefect reads them at its import, so this must come first.
