"""The password of a home, what `make up` gives its services, and which requests reach Prefect's server."""

import asyncio
import configparser
import os
import subprocess
from pathlib import Path

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from starlette.datastructures import Headers

from tasks.services.deploy import PACKAGES, require_imports
from tasks.services.environment import AUTH_STRINGS
from tasks.services.password import home_password, password_file
from tasks.services.prefect_server import OwnPagesOnly, own_origins, take_turns_in_sqlite
from tasks.services.up import Services, _exports

SERVER, CLIENT = AUTH_STRINGS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "a home"))
    return tmp_path / "a home"


def shell(lines: list[str], **variables: str) -> str:
    """Returns what a shell has in the client's variable after it evaluated `lines`."""
    script = "\n".join([*lines, f'printf %s "${CLIENT}"'])
    environment = {"PATH": os.environ["PATH"]} | variables
    return subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, check=True).stdout


def test_a_home_has_one_password_that_only_its_owner_reads() -> None:
    password = home_password()
    assert (password.startswith("medpix:"), len(password) > 40) == (True, True)
    assert password_file().stat().st_mode & 0o777 == 0o600
    password_file().chmod(0o644)
    assert home_password() == password
    assert password_file().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "no-user", "medpix:", ":secret", "medpix:a\nb", "medpix:\x1b[2J"])
def test_a_damaged_password_file_is_named(text: str) -> None:
    home_password()
    password_file().write_text(text)
    with pytest.raises(ValueError, match=r"prefect-password does not hold `user:password`; delete it"):
        home_password()


def test_a_file_that_hides_a_package_is_named_before_anything_starts(tmp_path: Path) -> None:
    require_imports(tmp_path)
    require_imports(PACKAGES)
    (tmp_path / "vlm_core").mkdir()
    require_imports(tmp_path)  # a folder without __init__.py hides no package
    (tmp_path / "tasks.py").touch()
    with pytest.raises(RuntimeError, match=r"tasks\.py has the name of a package"):
        require_imports(tmp_path)


def test_the_servers_get_a_password_and_a_shell_reads_it_without_seeing_it() -> None:
    services = Services({"PREFECT_SERVER_API_PORT": "14200"})
    password = home_password()
    assert {services.environment[name] for name in AUTH_STRINGS} == {password}
    assert services.environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == own_origins(14200)
    assert password not in services.instructions()
    assert str(password_file()) in services.instructions()
    assert shell(_exports(services._addresses())) == password
    # A second start, in the shell of the first.
    again = Services({"PREFECT_API_URL": services.environment["PREFECT_API_URL"], "PREFECT_SERVER_API_PORT": "14200"})
    assert again.environment[SERVER] == password


def test_a_password_of_the_user_stays_and_is_not_written_down(home: Path) -> None:
    services = Services({SERVER: "me:mine", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "https://prefect.example"})
    assert {services.environment[name] for name in AUTH_STRINGS} == {"me:mine"}
    assert services.environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "https://prefect.example"
    assert "me:mine" not in services.instructions() + str(services._addresses())
    assert f"the value of {SERVER}" in services.instructions()
    assert shell(_exports(services._addresses()), **{SERVER: "me:mine"}) == "me:mine"
    assert not password_file().exists()


def test_a_server_elsewhere_keeps_its_own_password() -> None:
    services = Services({"PREFECT_API_URL": "https://prefect.example/api", CLIENT: "me:theirs"})
    assert (services.environment[CLIENT], SERVER in services.environment) == ("me:theirs", False)
    assert "password" not in services.instructions()
    assert CLIENT not in "".join(_exports(services._addresses()))


def test_no_command_line_has_a_password_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    services = Services({"MLFLOW_TRACKING_URI": "postgresql+psycopg2://me:secret@db/mlflow"})
    config: configparser.RawConfigParser = services._config()
    assert "secret" not in str({name: dict(config[name]) for name in config.sections()})
    assert services.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://me:secret@db/mlflow"


@pytest.mark.parametrize(
    ("hosts", "origins", "allowed"),
    [
        (["127.0.0.1:4200"], [], True),
        (["localhost"], ["http://localhost:4200"], True),
        (["LOCALHOST:9999"], ["HTTP://127.0.0.1:4200"], True),
        (["[::1]:4200"], [], True),
        (["prefect.example"], ["https://prefect.example"], True),
        (["evil.example:4200"], [], False),
        (["127.0.0.1.evil.example"], [], False),
        (["evil.example", "127.0.0.1"], [], False),
        (["127.0.0.1@evil.example"], [], False),
        (["localhost."], [], False),
        ([""], [], False),
        ([], [], False),
        (["127.0.0.1:4200"], ["http://127.0.0.1:4201"], False),
        (["127.0.0.1:4200"], ["https://127.0.0.1:4200"], False),
        (["127.0.0.1:4200"], ["null"], False),
        (["127.0.0.1:4200"], [""], False),
        (["127.0.0.1:4200"], ["http://127.0.0.1:4200.evil.example"], False),
        (["127.0.0.1:4200"], ["http://127.0.0.1:4200", "https://evil.example"], False),
    ],
)
def test_which_requests_reach_the_server(hosts: list[str], origins: list[str], allowed: bool) -> None:
    known = frozenset({*own_origins(4200).split(","), "https://prefect.example"})
    own = OwnPagesOnly(lambda scope, receive, send: None, known)
    raw = [(b"host", host.encode()) for host in hosts] + [(b"origin", origin.encode()) for origin in origins]
    assert (own.refusal(Headers(raw=raw)) is None) == allowed


def test_transactions_of_prefects_server_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one reads and then writes. Prefect's own would fail at once: "database is locked"."""
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction)
    take_turns_in_sqlite()

    async def numbers() -> list[int]:
        database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}")
        engine = await database.engine()

        async def add_next_number() -> None:
            async with await database.session(engine) as session, database.begin_transaction(session):
                (count,) = (await session.execute(text("SELECT count(*) FROM numbers"))).one()
                await asyncio.sleep(0.01)
                await session.execute(text("INSERT INTO numbers VALUES (:count)"), {"count": count})

        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE numbers (number INTEGER)"))
        await asyncio.gather(*(add_next_number() for _ in range(4)))
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT number FROM numbers ORDER BY number"))
            rows = [number for (number,) in found]
        await engine.dispose()
        return rows

    assert asyncio.run(numbers()) == [0, 1, 2, 3]
