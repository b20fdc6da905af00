"""Files of interactions: here, or where fsspec reaches them; plain or compressed."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from objectives.data import digests
from objectives.errors import UserError

FORMATS = (".csv", ".tsv", ".inter", ".jsonl", ".ndjson", ".json", ".parquet")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


@dataclass(frozen=True)
class RemoteFile:
    """A file that fsspec reaches.

    Attributes:
        system: Its file system.
        path: Its path there.
    """

    system: Any
    path: str

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> str:
        """What its folder is called."""
        return str(self).rpartition("/")[0]


File = Path | RemoteFile


def format_of(file: File) -> tuple[str, str | None]:
    """What the name of a file says: one of `FORMATS`, or "", and how it is compressed."""
    path = PurePosixPath(file.name.lower())
    codec = _CODECS.get(path.suffix)
    suffix = PurePosixPath(path.stem).suffix if codec else path.suffix
    if suffix not in FORMATS or (codec and suffix == ".parquet"):
        return "", codec
    return suffix, codec


def find(place: str) -> list[File]:
    """The file of that path or URL, or the parts of the folder, by their names.

    Raises:
        UserError: There is none, or it cannot be told what they are.
    """
    files, is_folder = _list_remote(place) if "://" in place else _list_local(Path(place))
    if not files and not is_folder:
        raise FileNotFoundError(place)
    of_format = {file: format_of(file)[0] for file in files}
    if not is_folder and not of_format[files[0]]:
        raise UserError(
            f"{files[0]}: name it {', '.join(FORMATS[:-1])} (also .gz or .zst) or {FORMATS[-1]} "
            "to say what it is"
        )
    parts = [file for file in files if of_format[file]]
    if not parts:
        raise UserError(f"{place}: the folder holds no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if len({of_format[part] for part in parts}) > 1:
        raise UserError(f"{place}: the folder mixes file types; keep the parts of one type")
    return parts


def _list_local(path: Path) -> tuple[list[File], bool]:
    try:
        if path.is_dir():
            return [*sorted(part for part in path.rglob("*") if part.is_file())], True
        return [path] if path.is_file() else [], False
    except OSError:  # such as a name that is too long
        return [], False


def _list_remote(url: str) -> tuple[list[File], bool]:
    import fsspec

    scheme = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError:
        extra = f'; pip install -e ".[{_EXTRAS[scheme]}]" has it' if scheme in _EXTRAS else ""
        raise UserError(f"--data {scheme}://…: its package is not installed{extra}") from None
    except ValueError as error:
        raise UserError(
            f"--data {scheme}://…: {' '.join(str(error).split())}; rows of a database are named "
            "with --query"
        ) from None
    with readable(f"--data {scheme}://{path}"):
        if system.isdir(path):
            return [RemoteFile(system, part) for part in sorted(system.find(path))], True
        return ([RemoteFile(system, path)] if system.exists(path) else []), False


def size_of(file: File) -> int:
    """Bytes, as it lies there."""
    return file.stat().st_size if isinstance(file, Path) else int(file.system.size(file.path))


def open_file(file: File) -> pa.NativeFile:
    """Its bytes, as they lie there."""
    if isinstance(file, Path):
        return pa.OSFile(str(file))
    return pa.PythonFile(file.system.open(file.path, "rb"), mode="r")


def open_text(file: File) -> tuple[pa.NativeFile, pa.NativeFile]:
    """Its bytes, unpacked as they are read, and the file below, which knows how far that is."""
    raw = open_file(file)
    codec = format_of(file)[1]
    return (pa.CompressedInputStream(raw, codec) if codec else raw), raw


def file_digest(file: File) -> bytes:
    """SHA-256 of the content, or of what tells a remote file's content apart."""
    if isinstance(file, RemoteFile):
        with readable(file):
            return hashlib.sha256(str(file.system.checksum(file.path)).encode()).digest()
    with readable(file):
        return digests.file_digest(file)


@contextlib.contextmanager
def readable(where: object) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {printable(str(error), 200)}") from error


def printable(text: str, most: int) -> str:
    """So much of a text that stands in a file, in one line that a terminal can show."""
    line = " ".join(text[: 2 * most].split())[:most]
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)
