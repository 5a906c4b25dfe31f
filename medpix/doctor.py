"""Checks this machine: Python, packages, disk, ports, network, tokens, licences and the GPU, and says what to do.

    medpix doctor             exits with status 1 if something would stop a run
    medpix doctor --offline   asks neither the hub nor the servers

It writes nothing but a file that it deletes again, and sends nothing but requests to the hub and to the servers whose
addresses are set.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

from medpix.finding import Finding
from medpix.machine import check_disk, check_gpu, check_limits, check_packages, check_python
from medpix.network import check_hub, check_licences, check_ports, check_servers, check_token
from vlm_core.plain_text import printable

LICENSED = ("google/gemma-3-4b-it", "google/medgemma-4b-it", "google/medgemma-1.5-4b-it")  # of the shipped recipes


def checks(*, offline: bool) -> Iterator[Callable[[], Finding]]:
    """Yields the checks, the fast ones first."""
    yield from (check_python, check_packages, check_limits, check_disk, check_ports, check_token)
    if not offline:
        yield from (check_servers, check_hub, partial(check_licences, LICENSED))
    yield check_gpu


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="medpix doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--offline", action="store_true", help="leave out the checks that need the network")
    offline = parser.parse_args().offline
    problems = 0
    for check in checks(offline=offline):
        finding = check()
        problems += finding.state == "problem"
        print(printable(line(finding)), flush=True)
    print("\nnothing would stop a run" if not problems else f"\n{problems} of these would stop a run")
    sys.exit(1 if problems else 0)


def line(finding: Finding) -> str:
    """Returns a finding as text, with its remedy on a second line."""
    first = f"{finding.state:<8} {finding.name:<10} {finding.found}"
    return f"{first}\n{'':<19} -> {finding.remedy}" if finding.remedy else first


if __name__ == "__main__":
    main()
