"""Files and folders that are there as a whole or not at all, and folders with one writer."""

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    'locked', 'replacing', 'replacing_folder', 'scratch_folder', 'write_text', 'writing',
]  # fmt: skip

_LOCK, _SCRATCH = '.lock', '.scratch-'
#: What file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_held: set[int] = set()  # descriptors of locks


@contextlib.contextmanager
def writing(path: str | Path, part: Path | None = None) -> Iterator[None]:
    """Failures to write in the block become an ``OSError`` of one line with ``path`` in it.

    Of a full disk, Python does not tell the file, PyTorch and safetensors not even the disk.

    Args:
        path: What is written.
        part: What it is called until it is whole.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, part, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        of_torch = 'inline_container' in reason or 'PytorchStreamWriter' in reason
        if not (of_torch or isinstance(error, SafetensorError)):
            raise
        free = shutil.disk_usage(Path(path).parent).free
        raise OSError(f'{path} could not be written ({free:,} bytes are free): {reason}') from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when the block is done.

    Args:
        path: The file; parents are made.

    Yields:
        Where to write, beside it, with its suffix. Nothing stays there if the block fails.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path)
    part = path.with_name(f'.{path.stem}.part{path.suffix}')
    with writing(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole; parents are made."""
    with replacing(path) as part:
        part.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``path`` when the block is done.

    Where a process was killed between taking the old one away and putting the new one there, the
    next one does the latter.
    """
    with writing(path), scratch_folder(path) as scratch:
        new, old = scratch / 'new', scratch / 'old'
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, gone after the block; what killed processes left goes before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{path.name}{_SCRATCH}'
    _sweep(path.parent.glob(f'{glob.escape(prefix)}*'))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                stack.enter_context(_lock(folder / _LOCK))
            except (BlockingIOError, FileNotFoundError):  # another process took it for a left one
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # without locks, nobody takes it
                    raise
            yield folder
            return


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, until the block or this process ends.

    The folder is made, and goes again if nothing comes into it. What killed processes left in it
    goes.

    Raises:
        BlockingIOError: Another process is in it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            stack.enter_context(_lock(folder / _LOCK))
        except BlockingIOError:
            raise BlockingIOError(
                f'{folder} is in use by another process: wait for its end, or choose another folder'
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f'{folder} cannot be locked ({error.strerror}): start nothing else in it',
                stacklevel=4,
            )
        _sweep(folder.rglob(f'.*{_SCRATCH}*'))
        for left in list(folder.rglob(_LOCK)):
            with contextlib.suppress(OSError), _lock(left):
                pass  # whose process was killed
        yield


def _sweep(folders: Iterable[Path]) -> None:
    """Remove scratch folders that no process is in."""
    for left in list(folders):
        path = left.with_name(left.name[1:].rpartition(_SCRATCH)[0])
        with contextlib.suppress(OSError), _lock(left / _LOCK):
            if (left / 'old').exists() and not path.exists():
                os.replace(left / 'new', path)
            shutil.rmtree(left)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock file, which goes after the block; a process that ends lets go of it."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, 'no flock on this system', str(path))
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever held it has removed it
    _held.add(fd)
    try:
        yield
    finally:
        if fd in _held:
            path.unlink(missing_ok=True)
            _held.remove(fd)
            os.close(fd)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _let_go() -> None:
    """In a forked process, such as a loader's worker: locks are those of its parent alone."""
    while _held:
        os.close(_held.pop())


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_let_go)
