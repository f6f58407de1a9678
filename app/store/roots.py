"""Where a store's files lie: a folder of this machine, or anything that fsspec can reach.

Both answer the same three questions: what is in a folder, what is in a file, and how to call a path
in a message. A local root is read in place with the system's own calls; fsspec is loaded only where
a URL asks for it. Paths are given as their parts, which `names` has approved.
"""

from __future__ import annotations

import contextlib
import errno
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.errors import StoreError, TernausError

# Protocol -> the extra of this package that brings it, for the hint where it is missing.
EXTRAS = {"s3": "s3", "s3a": "s3"}

# What the backends of fsspec call the mark or the time of an object's last writing.
_STAMPS = (
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "updated",
    "created",
)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:::|://)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a folder; `size` in bytes, 0 for folders. `stamp`: of the last writing, in the
    backend's own words; empty where it has none.
    """

    folder: bool
    size: int
    stamp: str = field(default="", compare=False)


class Root(Protocol):
    """A folder somewhere. Reading raises FileNotFoundError or StoreError, never another kind.

    root.entries("lungs", "1")["manifest.json"] == Entry(folder=False, size=4711)
    root.read("lungs", "1", "manifest.json", end=1) == b"{"
    root.where("lungs", "1") == "s3://bucket/models/lungs/1"
    """

    def entries(self, *path: str) -> dict[str, Entry]:
        """What a folder holds, by name; empty where there is no such folder."""
        ...

    def read(self, *path: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes [start, end) of a file, fewer where it ends before."""
        ...

    def where(self, *path: str) -> str:
        """The path as a person would write it, without credentials."""
        ...


class LocalRoot:
    """A folder of this machine. Symbolic links are followed: mounted volumes are made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, *path: str) -> Path:
        return self.folder.joinpath(*path)

    def entries(self, *path: str) -> dict[str, Entry]:
        with _store_errors(self.where(*path)):
            try:
                children = list(self.path(*path).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return {}
            found = {}
            for child in children:
                try:
                    facts = child.stat()
                    folder = stat.S_ISDIR(facts.st_mode)
                    size = 0 if folder else facts.st_size
                    found[child.name] = Entry(folder, size, str(facts.st_mtime_ns))
                except FileNotFoundError:
                    continue  # renamed away since it was listed, or a link to nothing
            return found

    def read(self, *path: str, start: int = 0, end: int | None = None) -> bytes:
        with _store_errors(self.where(*path)), self.path(*path).open("rb", buffering=0) as file:
            file.seek(start)
            if end is None:
                return file.read()
            blocks = []
            wanted = end - start
            while wanted > 0 and (block := file.read(wanted)):
                blocks.append(block)
                wanted -= len(block)
            return b"".join(blocks)

    def where(self, *path: str) -> str:
        return str(self.path(*path))


class RemoteRoot:
    """A folder that fsspec reaches; its writes are single objects, never renames."""

    def __init__(self, url: str) -> None:
        self._url = re.sub(r"//[^/@]*@", "//", url.rstrip("/"))
        scheme = re.split("::|://", url)[0]
        import fsspec

        try:
            self._fs, path = fsspec.core.url_to_fs(url)
        except ImportError as exc:
            extra = EXTRAS.get(scheme)
            hint = f"pip install 'ternausnet-serve[{extra}]'" if extra else str(exc)
            raise StoreError(
                f"the store `{self._url}` needs a package that is not installed: {exc}\n"
                f"hint: {hint}"
            ) from exc
        except ValueError as exc:
            raise StoreError(f"`{self._url}` is not a store's address: {exc}") from exc
        self._path = str(path).rstrip("/")

    def entries(self, *path: str) -> dict[str, Entry]:
        full = self._full(path)
        with _store_errors(self.where(*path)):
            # Other processes publish too; a listing remembered from before would hide it.
            self._fs.invalidate_cache(full)
            try:
                listed = self._fs.ls(full, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            found = {}
            for info in listed:
                name = str(info["name"]).rstrip("/")
                if name == full:  # some object stores list the folder's own marker
                    continue
                folder = info["type"] == "directory"
                size = 0 if folder else info.get("size")
                size = self._fs.size(info["name"]) if size is None else size
                stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
                found[name.rsplit("/", 1)[-1]] = Entry(folder, int(size or 0), stamp)
            return found

    def read(self, *path: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            return b""
        with _store_errors(self.where(*path)):
            return bytes(self._fs.cat_file(self._full(path), start=start, end=end))

    def write(self, source: Path | bytes, *path: str) -> None:
        """A whole file at once, replacing what was there. Raises StoreError."""
        full = self._full(path)
        with _store_errors(self.where(*path)):
            if self._has_folders:
                self._fs.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
            if isinstance(source, Path):
                self._fs.put_file(str(source), full)
            else:
                self._fs.pipe_file(full, source)

    def create(self, data: bytes, *path: str) -> None:
        """A whole file, unless one is there. Raises FileExistsError or StoreError.

        Where the backend has an exclusive write (S3's `If-None-Match`) it is used; where it refuses
        to know that, the caller's claim is the only guard, and a plain write follows.
        """
        full = self._full(path)
        with _store_errors(self.where(*path)):
            try:
                self._fs.pipe_file(full, data, mode="create")
            except FileExistsError:
                # A write that was sent twice, because its first answer got lost, meets itself.
                if bytes(self._fs.cat_file(full)) != data:
                    raise
            except (NotImplementedError, TypeError):
                self._fs.pipe_file(full, data)
            except OSError as exc:
                if exc.errno != errno.ENOSYS:
                    raise
                self._fs.pipe_file(full, data)

    def remove(self, *path: str) -> None:
        """One file; nothing happens where there is none. Raises StoreError."""
        with _store_errors(self.where(*path)):
            try:
                self._fs.rm_file(self._full(path))
            except FileNotFoundError:
                return

    def remove_if_empty(self, *path: str) -> None:
        """A folder that holds nothing, where the backend has folders; best effort."""
        if self._has_folders:
            with contextlib.suppress(OSError):
                self._fs.rmdir(self._full(path))

    def where(self, *path: str) -> str:
        return "/".join((self._url, *path))

    def _full(self, path: tuple[str, ...]) -> str:
        return "/".join((self._path, *path))

    @property
    def _has_folders(self) -> bool:
        # Object stores have none, and may deny what fsspec asks of a bucket to make one. They are
        # known by what only they can do: take a path apart into a bucket and a key.
        return not hasattr(self._fs, "split_path")


def open_root(url: str | Path) -> LocalRoot | RemoteRoot:
    """The root that `url` names: a path, `file://...`, or any URL of fsspec. Raises StoreError."""
    text = str(url)
    scheme = _SCHEME.match(text)
    if not text:
        raise StoreError("the store's address is empty; expected a folder or a URL")
    if isinstance(url, Path) or scheme is None:
        return LocalRoot(Path(text).expanduser())
    if scheme[1] in ("file", "local") and "::" not in text:
        return LocalRoot(Path(text.partition("://")[2]))
    return RemoteRoot(text)


@contextlib.contextmanager
def _store_errors(where: str) -> Iterator[None]:
    """The one wall: what a disk or a backend raises becomes a StoreError that names the path.

    FileNotFoundError and FileExistsError pass, since callers know what they mean. The backends of
    fsspec raise the errors of their own libraries, which share no base but Exception.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, TernausError):
        raise
    except Exception as exc:
        raise StoreError(f"cannot use `{where}`: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    text: Any = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
