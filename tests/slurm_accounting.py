"""Runs a Slurm cluster with accounting: slurmdbd on MariaDB, and a queue that forgets jobs within seconds."""

import os
import subprocess
from pathlib import Path

from tests.e2e.services import free_port, wait_until
from tests.slurm import Cluster

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
PACKAGES = "slurmdbd mariadb-server"
ACCOUNT = "med"

CLUSTER = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={home}/munge.sock
AccountingStorageEnforce=associations
MinJobAge=2
"""
ACCOUNTS = """
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm
PidFile={home}/slurmdbd.pid
LogFile={home}/slurmdbd.log
"""


class AccountedCluster(Cluster):
    """The daemons including accounting; root may use only the account ACCOUNT."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.database_port = free_port()
        values = {"home": home, "port": free_port(), "database": self.database_port}
        with self.configuration.open("a") as file:
            file.write(CLUSTER.format(**values))
        accounts = home / "slurmdbd.conf"
        accounts.write_text(ACCOUNTS.format(host=os.uname().nodename.partition(".")[0], **values))
        accounts.chmod(0o600)

    def start_controller(self) -> None:
        """Starts accounting first: without it, a controller does not know whose jobs to accept."""
        self._start_database()
        self._start("slurmdbd", "slurmdbd", "-D")
        wait_until(lambda: "ControlHost" in self.output_of("sacctmgr", "show", "cluster"), "slurmdbd", 60)
        for added in (("cluster", "test"), ("account", ACCOUNT), ("user", "root", f"account={ACCOUNT}")):
            assert self.output_of("sacctmgr", "--immediate", "add", *added)
        super().start_controller()

    def _start_database(self) -> None:
        data, socket = self.home / "database", self.home / "database.sock"
        made = ("mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db")
        subprocess.run(made, check=True, capture_output=True, timeout=120)
        where = (f"--datadir={data}", f"--socket={socket}", f"--port={self.database_port}", "--bind-address=127.0.0.1")
        self._start("mariadb", "mariadbd", "--no-defaults", "--user=root", "--skip-grant-tables", *where)
        wait_until(socket.exists, "MariaDB", 60)
