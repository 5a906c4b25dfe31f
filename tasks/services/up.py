"""Starts and stops a Prefect server, an MLflow server and a worker on this machine, on loopback.

supervisord runs them, restarts them when they die, and stops each with all its processes. A server whose address is set
already (`PREFECT_API_URL`, an http `MLFLOW_TRACKING_URI`) is used and not started.
"""

import configparser
import hashlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from tasks.services.deploy import WORK_POOL, require_imports, working_directory
from tasks.services.environment import AUTH_STRINGS, default_tracking_uri
from tasks.services.password import home_password, password_file
from tasks.services.prefect_server import APP, ORIGINS, SERVER_ENVIRONMENT, own_origins
from vlm_core.files import read_json, write_json
from vlm_core.home import medpix_home
from vlm_core.plain_text import without_secrets

SECONDS_TO_START = 300  # a machine may be doing other things
ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
ADDRESSES_FILE = "addresses.json"  # the running services' addresses: another shell may have set other ports
PLUGIN = "PREFECT_PLUGINS_ENABLED=true PREFECT_PLUGINS_ALLOW=medpix-deployment-names"  # of pipelines/deployment_names
PASSWORD_FILE = "password_file"  # a key in ADDRESSES_FILE


class Services:
    """The services that run on this machine, and the environment that they and their clients need."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` has the user's settings; values that are missing get defaults."""
        self.directory = medpix_home() / "services"
        self.own: dict[str, list[str]] = {}  # name -> command
        # Set explicitly, because in a checkout the services and Prefect's deployments start in its root.
        here = {"PWD": str(working_directory()), "MEDPIX_HOME": str(medpix_home())}
        api, tracking = (environment.get(name, "") for name in ADDRESSES)
        prefect_port = environment.get("PREFECT_SERVER_API_PORT", "4200")
        mlflow_port = environment.get("MLFLOW_PORT", "5000")
        # The set address may be our own: a shell keeps it after the services have stopped.
        if api in ("", f"http://127.0.0.1:{prefect_port}/api"):
            api = f"http://127.0.0.1:{prefect_port}/api"
            server = ("--host", "127.0.0.1", "--port", prefect_port, "--log-level", "warning")
            self.own["prefect"] = _module("uvicorn", *APP, *server)
        if not tracking.startswith("http") or tracking == f"http://127.0.0.1:{mlflow_port}":
            store = default_tracking_uri() if tracking.startswith("http") else tracking or default_tracking_uri()
            tracking = f"http://127.0.0.1:{mlflow_port}"
            where = ("--artifacts-destination", medpix_home() / "mlflow" / "artifacts")
            address = ("--host", "127.0.0.1", "--port", mlflow_port, "--workers", 1)
            self.own["mlflow"] = _module("mlflow", "server", *where, *address)
            here["MLFLOW_BACKEND_STORE_URI"] = store  # not an argument: it may have a password, which `ps` would show
        self.own["worker"] = _module("prefect", "worker", "start", "--pool", WORK_POOL, "--name", WORK_POOL)
        self.environment = {**environment, **here, "PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": tracking}
        if "prefect" in self.own:
            own_password = environment.get(AUTH_STRINGS[0])
            self.environment |= dict.fromkeys(AUTH_STRINGS, own_password or home_password())
            self.environment.setdefault(ORIGINS, own_origins(prefect_port))

    def up(self) -> str:
        """Starts the services unless they run, registers the deployments, and returns what to do next.

        Raises RuntimeError, with the path of the log, if a service does not answer.
        """
        require_imports(working_directory())
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.is_up:
            self._start()
        shown = {name: without_secrets(self.environment[name]) for name in ADDRESSES}
        with _step(f"waiting for Prefect at {shown['PREFECT_API_URL']}"):
            self._wait("prefect", f"{self.environment['PREFECT_API_URL']}/health")
        with _step(f"waiting for MLflow at {shown['MLFLOW_TRACKING_URI']}"):
            self._wait("mlflow", f"{self.environment['MLFLOW_TRACKING_URI']}/health")
        self._require_password()
        with _step("registering the work pool and the deployments"):
            self._run(_module("tasks.services.deploy", *(["--own-server"] if "prefect" in self.own else [])))
        with _step("ending the jobs that stopped runs have left"):
            self._run(_module("tasks.ownership"))
        with _step("starting the worker"):
            self._control("start", "worker")
        return self.instructions()

    def _start(self) -> None:
        with _step(f"starting {', '.join(self.own)} under supervisord"):
            with (self.directory / "supervisord.conf").open("w", encoding="utf-8") as stream:
                self._config().write(stream)
            write_json(self.directory / ADDRESSES_FILE, self._addresses())
            self._run(_module("supervisor.supervisord", "-c", self.directory / "supervisord.conf"))

    def down(self) -> None:
        """Stops all services and waits until they have ended."""
        supervisor = self._control("pid")
        if supervisor.returncode == 0:
            process = psutil.Process(int(supervisor.stdout))
            self._control("shutdown")
            process.wait()  # supervisord ends after its services

    @property
    def is_up(self) -> bool:
        """Whether supervisord runs."""
        return self._control("pid").returncode == 0

    def status(self) -> str:
        """Returns one line per service with its state."""
        return (
            self._control("status").stdout.strip() if self.is_up else "no services are running; `make up` starts them"
        )

    def exports(self) -> str:
        """Returns lines for a shell's `eval`, which contain no password; raises RuntimeError if no services run."""
        if not self.is_up:
            raise RuntimeError(self.status())
        return "\n".join(_exports(read_json(self.directory / ADDRESSES_FILE)))

    def instructions(self) -> str:
        """Returns the addresses, and how to use them from a shell and in a browser."""
        addresses = {name: without_secrets(value) for name, value in self._addresses().items()}
        return "\n".join(
            [
                f"Prefect  {addresses['PREFECT_API_URL'].removesuffix('/api')}",
                f"MLflow   {addresses['MLFLOW_TRACKING_URI']}",
                f"logs     {self.directory}",
                *self._log_in(addresses),
                "",
                'For a shell that uses them, `eval "$(make env)"` or:',
                *(f"  {line}" for line in _exports(addresses)),
                "then, for example: prefect deployment run medpix-finetune -p recipe=demo",
            ]
        )

    def _log_in(self, addresses: Mapping[str, str]) -> list[str]:
        """Returns how to log in to Prefect's pages in a browser; [] if the server is not ours."""
        if file := addresses.get(PASSWORD_FILE):
            return ["", f"Prefect's pages ask for a password. This command prints it: cat {shlex.quote(file)}"]
        if AUTH_STRINGS[0] in addresses:
            return ["", f"Prefect's pages ask for a password. It is the value of {AUTH_STRINGS[0]}."]
        return []

    def _addresses(self) -> dict[str, str]:
        """Returns what another shell needs to know about the services: their addresses, and where the password is."""
        known = {name: self.environment[name] for name in ADDRESSES}
        if "prefect" not in self.own:
            return known
        if password_file().exists() and self.environment[AUTH_STRINGS[0]] == home_password():
            return known | {PASSWORD_FILE: str(password_file())}
        return known | {AUTH_STRINGS[0]: "set in the environment of `make up`"}

    def _require_password(self) -> None:
        """Raises RuntimeError if our Prefect server needs no password because an older version started it."""
        api = self.environment["PREFECT_API_URL"]
        if "prefect" in self.own and httpx.get(f"{api}/admin/version", timeout=60).is_success:
            raise RuntimeError(f"Prefect at {api} has no password; run `make down` and `make up` to give it one")

    def _config(self) -> configparser.RawConfigParser:
        config = configparser.RawConfigParser()
        # Not under the home: the path of a socket may have 107 bytes at most.
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
        socket = Path(tempfile.gettempdir()) / f"medpix-{digest}.sock"
        config["unix_http_server"] = {"file": str(socket)}
        config["supervisord"] = {
            "logfile": str(self.directory / "supervisord.log"),
            "pidfile": str(self.directory / "supervisord.pid"),
            "umask": f"{0o777 & ~self.directory.parent.stat().st_mode:03o}",  # supervisord sets its own umask otherwise
        }
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        config["supervisorctl"] = {"serverurl": f"unix://{socket}"}
        for name, command in self.own.items():
            config[f"program:{name}"] = {
                "command": " ".join(_quoted(word) for word in command),
                "directory": self.environment["PWD"].replace("%", "%%"),
                "stdout_logfile": str(self.directory / f"{name}.log"),
                "redirect_stderr": "true",
                "autostart": str(name != "worker").lower(),  # its work pool must exist first
                "autorestart": "true",
                "stopasgroup": "true",
                "killasgroup": "true",
                "stopwaitsecs": "40",  # a stopped run first saves a checkpoint
            }
        if "prefect" in self.own:
            variables = (f'{name}="{value}"' for name, value in SERVER_ENVIRONMENT.items())
            config["program:prefect"]["environment"] = ",".join(variables)
        if "mlflow" in self.own:  # a warning for MLflow's developers, about an import of theirs
            config["program:mlflow"]["environment"] = 'PYTHONWARNINGS="ignore:starlette.middleware.wsgi is deprecated"'
        # The worker needs no plugin, and the processes of its hooks would fail to set plugins up, with a traceback.
        config["program:worker"]["environment"] = 'PREFECT_PLUGINS_ENABLED="false"'
        return config

    def _control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = _module("supervisor.supervisorctl", "-c", self.directory / "supervisord.conf", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _run(self, command: list[str]) -> None:
        here = self.environment["PWD"]
        done = subprocess.run(command, cwd=here, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

    def _wait(self, name: str, url: str) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            try:
                if httpx.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"{name} does not answer at {without_secrets(url)}; see {self.directory / name}.log")


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Shows on standard error that a step runs and how long it took; in a terminal, also a running clock."""
    console, started = Console(stderr=True, highlight=False, soft_wrap=True), time.monotonic()
    if console.is_terminal:
        columns = (SpinnerColumn(), "{task.description}", TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(what, total=None)
            yield
    else:
        console.print(f"{what} ...")
        yield
    console.print(f"{what}: done in {time.monotonic() - started:.0f} s")


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def _exports(addresses: Mapping[str, str]) -> list[str]:
    """Returns lines for a shell's `eval`. The shell reads the password from its file, so that no log shows it."""
    client = AUTH_STRINGS[1]
    lines = [f"export {name}={shlex.quote(addresses[name])}" for name in ADDRESSES]
    lines.append(f"export {PLUGIN}")
    if file := addresses.get(PASSWORD_FILE):
        lines.append(f'export {client}="$(cat {shlex.quote(file)})"')
    elif AUTH_STRINGS[0] in addresses:
        lines.append(f'export {client}="${AUTH_STRINGS[0]}"')
    return lines


def _quoted(word: str) -> str:
    """Returns a word quoted for supervisord's configuration, which expands % and splits like a shell."""
    return '"' + word.replace("%", "%%").replace('"', '\\"') + '"'
