"""A plugin of Prefect's command that accepts a deployment's bare name: `prefect deployment run medpix-finetune`.

Prefect 3.8 requires FLOW/DEPLOYMENT in two places: when its client reads a deployment, and in subcommands that check
the name first (inspect, schedule ls and others). This plugin finds the deployment with the bare name. pyproject.toml
enables it for Prefect's commands in the project's directory, and `make env` for those of a shell.
"""

import sys
from functools import wraps
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.plugins import register_hook


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Lets Prefect's client read a deployment by its bare name."""
    by_full_name = PrefectClient.read_deployment_by_name

    @wraps(by_full_name)
    async def read_deployment_by_name(client: PrefectClient, name: str) -> Any:
        return await by_full_name(client, name if "/" in name else await _full_name(client, name))

    setattr(PrefectClient, by_full_name.__name__, read_deployment_by_name)
    if "deployment" in sys.argv[1:]:
        _allow_bare_names()


def _allow_bare_names() -> None:
    """Disables the format check of `prefect deployment`, which would reject a bare name before the client gets it."""
    from prefect.cli import deployment  # lazy: takes seconds; this command imports it anyway

    setattr(deployment, "_assert_deployment_name_format", lambda name: None)  # noqa: B010


async def _full_name(client: PrefectClient, name: str) -> str:
    """Returns FLOW/DEPLOYMENT; ends the command with a hint unless exactly one deployment has this name."""
    wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    flows = [
        (await client.read_flow(deployment.flow_id)).name
        for deployment in await client.read_deployments(deployment_filter=wanted)
    ]
    if len(flows) == 1:
        return f"{flows[0]}/{name}"
    known = [f"{flow}/{name}" for flow in sorted(flows)]
    raise SystemExit(
        f"{len(flows)} deployments are called {name!r}; type one of {', '.join(known)}"
        if known
        else f"no deployment is called {name!r}; `prefect deployment ls` lists them"
    )
