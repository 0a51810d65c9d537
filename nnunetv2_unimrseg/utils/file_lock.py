"""A lock between processes, on one machine or on several that share a file system."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from nnunetv2_unimrseg.errors import UserError, reason_in_words
from nnunetv2_unimrseg.utils.files import not_written

_LEASE_S = 60.0
"""A lock that its process has not renewed for so long is taken over; on the process's own machine, at once."""

_LONGEST_WAIT_S = 600.0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time read and rewrite a file, or files that belong together.

    The lock is a hidden file beside `path`, which is removed afterwards. It is a lease, because `flock` does not work
    on every network file system, and because the file of an `flock` cannot be removed safely on NFS.

    Args:
        path: the file; every process must give the same one.

    Raises:
        UserError: when the lock cannot be written there, or another process holds it for more than ten minutes.
    """
    lock = path.with_name(f".{path.name}.lock")
    lease = SoftFileLease(lock, lease_duration=_LEASE_S, timeout=_LONGEST_WAIT_S)
    try:
        lease.acquire()
    except Timeout:
        raise UserError(
            f"Waited {_LONGEST_WAIT_S:.0f} s for another process that locks {path}. Remove {lock} if there is none."
        ) from None
    except OSError as error:
        raise not_written(path, reason_in_words(error)) from error
    try:
        yield
    finally:
        lease.release()
