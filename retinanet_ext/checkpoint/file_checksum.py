"""Detects damaged checkpoint files. This file imports no engine.

A ``.pth`` file is a zip archive. :class:`ChecksummedWriter` puts the SHA-256 of all bytes before it into the archive's
comment, where every reader of such files skips it. One changed byte anywhere is then found. Archives of other writers
have at least the CRC of every member.
"""

import hashlib
import logging
import os
import re
import struct
import zipfile
from typing import BinaryIO

logger = logging.getLogger(__name__)

_END_SIGNATURE, _END_LENGTH = b"PK\x05\x06", 22  # the archive's last record, without the comment
_PREFIX = b"retinanet_ext sha256 "
_COMMENT_LENGTH = len(_PREFIX) + 64
_BLOCK = 1 << 22
# torchvision's names end with the first digits of their SHA-256: resnet50-0676ba61.pth.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_told: set[str] = set()


class ChecksummedWriter:
    """Passes the bytes of a zip archive on to ``file``; :meth:`finish` adds the checksum.

    The serialiser of torch reports an error of a file in a way that hides its cause. So the first error is kept, the
    rest of the archive is dropped, and :meth:`finish` raises the error.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._hash, self._held = file, hashlib.sha256(), b""
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        # The last record is held back: its length of the comment changes.
        if len(view) >= _END_LENGTH:
            self._emit(self._held)
            self._emit(view[:-_END_LENGTH])
            self._held = bytes(view[-_END_LENGTH:])
        else:
            joined = self._held + bytes(view)
            self._emit(joined[:-_END_LENGTH])
            self._held = joined[-_END_LENGTH:]
        return len(view)

    def flush(self) -> None:
        """Does nothing; :meth:`finish` decides what is written."""

    def finish(self) -> None:
        """Write the end of the archive with the checksum.

        Raises:
            OSError: the first error of the file.
            ValueError: what was written does not end as a zip archive does.
        """
        if self._error is None and (len(self._held) != _END_LENGTH or not self._held.startswith(_END_SIGNATURE)):
            raise ValueError("torch.save wrote no zip archive, or one that ends with a comment")
        self._emit(self._held[:-2] + struct.pack("<H", _COMMENT_LENGTH))
        self._emit(_PREFIX + self._hash.hexdigest().encode())
        if self._error is not None:
            raise self._error

    def _emit(self, data: bytes | memoryview) -> None:
        if self._error is not None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        else:
            self._hash.update(data)


def verify_file(path: str) -> bool:
    """Compare a checkpoint with the checksums that it has.

    These are, in this order: a line of ``sha256sum`` in ``<path>.sha256``; the digits in a name such as
    ``resnet50-0676ba61.pth``; for zip archives, the checksum of the whole file or else the CRC of each member.

    Returns:
        Whether all of the content is covered. If not, the log says so, once for each file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged.
    """
    covered = _verify_file_beside(path) or _verify_name(path)
    with open(path, "rb") as file:
        is_archive = _looks_like_archive(file)
        if is_archive:
            covered = _verify_archive(path, file) or covered
    if not covered and path not in _told:
        _told.add(path)
        logger.info(
            "%s holds no checksum, so damage inside it would not be seen. To have it verified, write one beside it: "
            "sha256sum %s > %s.sha256", path, os.path.basename(path), os.path.basename(path),
        )  # fmt: skip
    return covered


def sha256_of(file: BinaryIO, length: int | None = None) -> str:
    """The SHA-256, as 64 hexadecimal digits, of the first ``length`` bytes of an open file (None: of all)."""
    digest, left = hashlib.sha256(), length
    file.seek(0)
    while left is None or left > 0:
        block = file.read(_BLOCK if left is None else min(_BLOCK, left))
        if not block:
            break
        digest.update(block)
        left = None if left is None else left - len(block)
    return digest.hexdigest()


class DamagedFile(ValueError):
    """A file that differs from what its writer wrote; ``found`` says in what."""

    def __init__(self, path: str, found: str):
        super().__init__(
            f"{path} is damaged: {found}. Copy or download it again, or use another checkpoint of the run (--resume "
            "takes the newest good one by itself)"
        )
        self.found = found


def _verify_file_beside(path: str) -> bool:
    beside = f"{path}.sha256"
    if not os.path.isfile(beside):
        return False
    with open(beside, "rb") as file:
        words = file.read(4096).decode("utf-8", "replace").split()
    if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
        raise ValueError(
            f"{beside} must begin with the 64 hexadecimal digits of a SHA-256, found {' '.join(words)[:80]!r}; write "
            f"it again with: sha256sum {os.path.basename(path)} > {os.path.basename(beside)}"
        )
    with open(path, "rb") as file:
        found = sha256_of(file)
    if found != words[0].lower():
        raise DamagedFile(path, f"its SHA-256 is {found}, and {beside} says {words[0].lower()}")
    return True


def _verify_name(path: str) -> bool:
    match = _HASH_IN_NAME.search(os.path.basename(path))
    # Digits alone are more often a date: model-20240101.pth.
    if match is None or match[1].isdigit():
        return False
    with open(path, "rb") as file:
        found = sha256_of(file)
    if not found.startswith(match[1]):
        raise DamagedFile(
            path,
            f"its SHA-256 begins with {found[: len(match[1])]}, and its name says {match[1]} (if that is no checksum, "
            "rename the file)",
        )
    return True


def _looks_like_archive(file: BinaryIO) -> bool:
    """Whether either end of the file is that of a zip archive, so that one damaged end does not hide the other."""
    start = file.read(4)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_LENGTH - _COMMENT_LENGTH))
    end = file.read()
    return start.startswith(b"PK") or _PREFIX in end or end[-_END_LENGTH:].startswith(_END_SIGNATURE)


def _verify_archive(path: str, file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_LENGTH - _COMMENT_LENGTH))
    end = file.read()
    comment = end[_END_LENGTH:]
    if end.startswith(_END_SIGNATURE) and comment.startswith(_PREFIX):
        found, expected = sha256_of(file, size - _COMMENT_LENGTH), comment[len(_PREFIX) :].decode("latin1")
        if found != expected:
            where = f"the SHA-256 of its {size:,} bytes begins with {found[:12]}"
            raise DamagedFile(path, f"{where}, and the file says {expected[:12]}")
        return True
    if not end[-_END_LENGTH:].startswith(_END_SIGNATURE) or end[-2:] != b"\0\0":
        raise DamagedFile(path, f"its {size} bytes do not end as a checkpoint does, so it was cut, extended or changed")
    _verify_members(path, file)
    return True


def _verify_members(path: str, file: BinaryIO) -> None:
    """Check an archive of another writer as far as its own CRCs go."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if not members or min(member.header_offset for member in members) != 0:
                raise DamagedFile(path, "bytes before its first member are not its own, or it has no member")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED:
                    raise DamagedFile(path, f"its member {member.filename!r} is compressed, unlike those of torch.save")
                with archive.open(member) as content:
                    while content.read(_BLOCK):
                        pass
    except (OSError, ValueError):
        raise
    except Exception as error:  # any type: it depends on where the file is damaged
        raise DamagedFile(path, f"{type(error).__name__}: {error}") from error
