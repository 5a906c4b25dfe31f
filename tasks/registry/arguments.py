"""The arguments of `python -m tasks.registry`, read before MLflow is imported, which takes seconds."""

import argparse
from pathlib import Path

from vlm_core.program import as_called


def registry_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m tasks.registry"),
        description=as_called(description or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show versions, their scores and aliases").add_argument("name", nargs="?")
    command = commands.add_parser("promote", help="make a version the champion")
    command.add_argument("name")
    command.add_argument("version")
    command.add_argument("--reason", default="promoted by hand")
    command = commands.add_parser("rollback", help="make the previous champion the champion again")
    command.add_argument("name")
    command.add_argument("--reason", default="")
    command = commands.add_parser("history", help="show who changed the champion, when and why; the newest last")
    command.add_argument("name")
    command = commands.add_parser("review", help="add the scores of a reader study to a version, as tags")
    command.add_argument("name")
    command.add_argument("version", help="a number or an alias")
    command.add_argument("scores", type=Path, help=as_called("what python -m vlm_core.review score wrote"))
    command = commands.add_parser(
        "verify", help="check that a version's files and evaluation are as they were registered"
    )
    command.add_argument("name")
    command.add_argument("version", help="a number or an alias")
    command = commands.add_parser("serve", help="verify a version, then serve it over HTTP on loopback")
    command.add_argument("name")
    command.add_argument("version", help="a number or an alias")
    command.add_argument("--port", default="5001")
    command = commands.add_parser("push", help="verify a version, then upload it to the Hugging Face hub")
    command.add_argument("name")
    command.add_argument("version", help="a number or an alias")
    command.add_argument("repository", help="OWNER/NAME; created if it does not exist")
    command.add_argument("--public", action="store_true", help="if created, everybody can read it; else it is private")
    return parser
