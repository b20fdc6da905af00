"""Digests of files, remembered in the cache: to hash 100 M interactions anew takes seconds."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from objectives.data.cache import cache_entry, cache_folder
from objectives.errors import UserError

_YOUNG_NS = 2_000_000_000
"""File systems count time in steps of at most two seconds. A file that changed in the step in
which it is read may change again and look the same; git distrusts such files likewise."""


def file_digest(path: Path) -> bytes:
    """SHA-256 of the file's content.

    It is remembered for the file's path, size, inode and times. The time of the last change of
    any kind is one of them, which nobody can set.

    Raises:
        OSError: The file cannot be read.
    """
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    record = cache_folder() / "digests" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record.read_text())
        if known["looks"] == _looks(path.stat()):
            return bytes.fromhex(known["sha256"])
    now = time.time_ns()
    with path.open("rb") as stream:
        before = os.fstat(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").digest()
        after = os.fstat(stream.fileno())
    if _looks(before) == _looks(after) and before.st_ctime_ns < now - _YOUNG_NS:
        # Without a record it takes longer next time.
        with contextlib.suppress(UserError), cache_entry(record) as temporary:
            temporary.write_text(json.dumps({"looks": _looks(before), "sha256": digest.hex()}))
    return digest


def _looks(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
