"""The arguments of `python -m tasks.playground`, read before MLflow and torch are imported, which takes seconds."""

import argparse

from vlm_core.program import as_called


def playground_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m tasks.playground"),
        description=as_called(description or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="of a registered model")
    parser.add_argument("version", nargs="?", default="champion", help="a number or an alias; default: champion")
    parser.add_argument("--port", type=int, default=5002)
    return parser
