"""Checks of ports, servers and the Hugging Face hub."""

import os
import socket
from collections.abc import Sequence

import httpx
import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from medpix.finding import Finding
from vlm_core.files import read_json
from vlm_core.home import medpix_home
from vlm_core.plain_text import without_secrets

PORTS = {"PREFECT_SERVER_API_PORT": ("Prefect", "4200"), "MLFLOW_PORT": ("MLflow", "5000")}
SERVERS = {"PREFECT_API_URL": "Prefect", "MLFLOW_TRACKING_URI": "MLflow"}
LOOPBACK = "127.0.0.1"
SECONDS = 10


def check_ports() -> Finding:
    """Checks that the ports of `medpix up` are free, or are those of its own servers."""
    wanted = {variable: os.environ.get(variable, port) for variable, (_, port) in PORTS.items()}
    for variable, port in wanted.items():
        if not (port.isdecimal() and 0 < int(port) < 65536):
            return Finding("problem", "ports", f"{variable}={port} is not a port", f"unset {variable}")
        if answers(port) and not is_own(port):
            remedy = f"choose another one before `medpix up`: export {variable}={free_port()}"
            return Finding("warning", "ports", f"port {port} is used by another program", remedy)
    shown = ", ".join(f"{name} {wanted[variable]}" for variable, (name, _) in PORTS.items())
    return Finding("ok", "ports", f"{shown}: free, or used by `medpix up`")


def free_port() -> int:
    """Returns a port that no program of this machine uses now."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return one.getsockname()[1]


def answers(port: str) -> bool:
    """Returns whether a program listens on a port of this machine."""
    with socket.socket() as one:
        one.settimeout(2)
        return one.connect_ex((LOOPBACK, int(port))) == 0


def is_own(port: str) -> bool:
    """Returns whether the servers of this home have the port."""
    addresses = medpix_home() / "services" / "addresses.json"
    return addresses.is_file() and any(f"{LOOPBACK}:{port}" in str(one) for one in read_json(addresses).values())


def check_servers() -> Finding:
    """Checks that the servers whose addresses are set answer."""
    addresses = {name: os.environ.get(variable, "") for variable, name in SERVERS.items()}
    remote = {name: address for name, address in addresses.items() if address.startswith("http")}
    if not remote:
        return Finding("ok", "servers", "none set: runs use files under MEDPIX_HOME")
    silent = [f"{name} at {without_secrets(address)}" for name, address in remote.items() if not is_healthy(address)]
    if silent:
        return Finding("problem", "servers", f"no answer from {', '.join(silent)}",
                       "start them (`medpix up`), correct the address, or unset the variable")  # fmt: skip
    return Finding("ok", "servers", ", ".join(f"{name} at {without_secrets(url)}" for name, url in remote.items()))


def is_healthy(address: str) -> bool:
    """Returns whether a server answers at its path `/health`, if only to ask for a password."""
    try:
        return httpx.get(f"{address.rstrip('/')}/health", timeout=SECONDS).status_code in (200, 401, 403)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def check_token() -> Finding:
    """Checks that there is a token for the hub."""
    if get_token():
        return Finding("ok", "token", "a token of the Hugging Face hub is set")
    return Finding("warning", "token", "no token of the Hugging Face hub", "Gemma and MedGemma need one: make it at "
                   f"{constants.ENDPOINT}/settings/tokens, then export HF_TOKEN=...")  # fmt: skip


def check_hub() -> Finding:
    """Checks that the hub answers."""
    if constants.HF_HUB_OFFLINE:
        return Finding("warning", "hub", "HF_HUB_OFFLINE is set: only files in the cache are used",
                       "unset it to download")  # fmt: skip
    hub = without_secrets(constants.ENDPOINT)
    try:
        httpx.head(constants.ENDPOINT, timeout=SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "local models and data work without it; otherwise check HTTPS_PROXY, HF_ENDPOINT and the firewall"
        return Finding("warning", "hub", f"{hub} cannot be reached: {error or type(error).__name__}", remedy)
    return Finding("ok", "hub", f"{hub} answers")


def check_licences(models: Sequence[str]) -> Finding:
    """Checks that this user may download the models whose licence has to be accepted."""
    if constants.HF_HUB_OFFLINE:
        return Finding("warning", "licences", "not asked: HF_HUB_OFFLINE is set")
    missing = []
    for model in models:
        try:
            HfApi().auth_check(model)
        except GatedRepoError:
            missing.append(model)
        except RepositoryNotFoundError:
            return Finding("warning", "licences", f"the hub does not know {model}", "check HF_ENDPOINT and HF_TOKEN")
        except (httpx2.HTTPError, HfHubHTTPError) as error:
            return Finding("warning", "licences", f"the hub could not be asked about {model}: {type(error).__name__}")
    if missing:
        return Finding("warning", "licences", f"not accepted, or no token: {', '.join(missing)}",
                       f"accept the one you want at {constants.ENDPOINT}/{missing[0]}, and set HF_TOKEN")  # fmt: skip
    return Finding("ok", "licences", f"these may be downloaded: {', '.join(models)}")
