"""A cluster with accounts knows how a job ended that its queue has forgotten, and whose job it does not take."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.launchers import slurm_commands
from tasks.launchers.slurm_commands import Status
from tests import slurm
from tests.e2e.services import wait_until
from tests.slurm import Cluster, running
from tests.slurm_accounting import ACCOUNT, PACKAGES, PROGRAMS, AccountedCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = slurm.missing_requirements() or slurm.missing_requirements(PROGRAMS, PACKAGES)
    if reason:
        pytest.skip(reason)
    with running(AccountedCluster(tmp_path_factory.mktemp("accounted"))) as cluster:
        yield cluster


def submit(directory: Path, command: str, account: str = ACCOUNT) -> int:
    script = directory / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --account={account}\n#SBATCH --output=/dev/null\n{command}\n")
    return slurm_commands.submit(script)


def test_the_accounts_know_how_a_forgotten_job_ended(accounted: Cluster, tmp_path: Path) -> None:
    ended_well, failed, cancelled = (submit(tmp_path, command) for command in ("true", "exit 3", "sleep 100"))
    wait_until(lambda: slurm_commands.status_of(cancelled).state == "RUNNING", "the last job runs", 60)
    slurm_commands.cancel(cancelled)
    wait_until(lambda: accounted.output_of("squeue", "--noheader", "--states=all") == "", "the queue forgets them", 120)
    found = [slurm_commands.status_of(job).state for job in (ended_well, failed, cancelled)]
    assert found == ["COMPLETED", "FAILED", "CANCELLED"]
    assert slurm_commands.status_of(99) == Status(slurm_commands.UNKNOWN)


def test_an_account_of_others_is_refused_at_once(accounted: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Invalid account or account/partition combination specified; change compute"):
        submit(tmp_path, "true", account="nope")
