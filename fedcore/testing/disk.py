"""A disk that forgets what was not synchronised when the power fails, as real ones do, but as a seed has it.

What is written lies in a real folder, where whoever reads finds it at once: that is what the system shows while it runs. Beside
it the disk keeps account of what would be there if the power failed now: the bytes of a file up to its last ``fsync``, and the
names in a folder up to the folder's. The rest is lost, in part or in whole, when it does.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedcore import durable
from fedcore.testing.journal import Crashed
from fedcore.transport import Buffer


class LossyDisk:
    """Keeps the files that :mod:`fedcore.durable` writes below a folder.

    >>> disk = LossyDisk(tmp_path, seed=7)
    >>> with disk.attached():
    ...     blobs = Blobs(disk.path / "models", codec)
    ...     disk.crash_at(disk.steps + 3)  # within the next put
    ...     with pytest.raises(Crashed):
    ...         blobs.put(payload, "ckpt")
    ...     disk.restart(power=False)

    A step is to make a file, to write to it, to synchronise it or a folder, to rename it, or to take it away. Folders that are
    made are there for good. What is there in the beginning is synchronised.

    Args:
        folder: where the files are.
        seed: of what is lost.

    Attributes:
        path: the folder, as a path whose files this disk keeps. Paths made of it are such, too.
        steps: how many steps there were.
    """

    def __init__(self, folder: Path, *, seed: int = 0):
        self.steps = 0
        self._random = random.Random(seed)  # noqa: S311 - what is lost, no secret
        self._crash_at: int | None = None
        self._fail_at: int | None = None
        self._dead = False
        self._shown: dict[str, _Content] = {}
        self._lasting: dict[str, _Content] = {}
        self._pending: list[tuple[str, _Content | None]] = []  # names since their folder was synchronised
        self._folders: dict[int, str] = {}  # that are open
        self._files: dict[int, _Content] = {}
        for each in folder.rglob("*"):
            if each.is_file():
                self._shown[str(each)] = self._lasting[str(each)] = _Content(each.read_bytes())
        self.path: Path = type("LossyPath", (_LossyPath,), {"disk": self})(folder)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let :mod:`fedcore.durable` synchronise with this disk."""
        names = vars(durable)
        before, names["os"] = names["os"], _System(self)
        try:
            yield
        finally:
            names["os"] = before

    def crash_at(self, step: int) -> None:
        """Let the process end before this step; :class:`~fedcore.testing.Crashed` is raised there, and at all that follow."""
        self._crash_at = step

    def fail_at(self, step: int) -> None:
        """Let this step fail with an ``OSError``; it may be done again."""
        self._fail_at = step

    def restart(self, *, power: bool) -> None:
        """Let the next process begin, after a crash or without one.

        Args:
            power: whether the power stayed on: then what was written is there. If not, of all that was not synchronised
                each part is kept, lost or torn, as chance has it.
        """
        self._dead, self._crash_at, self._fail_at = False, None, None
        if not power:
            self._lose()

    # --- what happens on it ---

    def create(self, path: Path) -> _File:
        """Make a file, and return what is written to."""
        self.step()
        content = _Content()
        file = _File(self, open(path, "xb", buffering=0), content)  # noqa: SIM115
        self._files[file.fileno()] = content
        self._name(str(path), content)
        return file

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name; one that had it is gone."""
        self.step()
        os.replace(path, target)
        content = self._shown[str(path)]
        self._name(str(target), content)
        self._name(str(path), None)

    def remove(self, path: Path) -> None:
        """Take a file away."""
        self.step()
        os.unlink(path)
        self._name(str(path), None)

    def enter(self, folder: str, number: int) -> None:
        """Take note that a folder was opened."""
        self._folders[number] = folder

    def leave(self, number: int) -> None:
        """Take note that a file or a folder was closed."""
        self._folders.pop(number, None)
        self._files.pop(number, None)

    def synchronise(self, number: int) -> None:
        """Make what is in a file, or which names are in a folder, last."""
        self.step()
        if number in self._files:
            self._files[number].synchronise()
            return
        folder, pending = self._folders[number], self._pending
        self._pending = [change for change in pending if os.path.dirname(change[0]) != folder]
        for change in pending:
            if os.path.dirname(change[0]) == folder:
                _apply(self._lasting, *change)

    def step(self) -> None:
        """Come to a step.

        Raises:
            Crashed: the process ends here.
            OSError: the step fails.
        """
        if self._dead:
            raise Crashed("the process is no more")
        self.steps += 1
        if self.steps == self._crash_at:
            self._dead = True
            raise Crashed(f"at step {self.steps}")
        if self.steps == self._fail_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _name(self, name: str, content: _Content | None) -> None:
        _apply(self._shown, name, content)
        self._pending.append((name, content))

    def _lose(self) -> None:
        for name, content in self._pending:
            if self._random.random() < 0.5:
                _apply(self._lasting, name, content)
        self._pending = []
        for name in self._shown:
            os.unlink(name)
        rest = {content: content.torn(self._random) for content in self._lasting.values()}
        self._shown = self._lasting = {name: _Content(rest[content]) for name, content in self._lasting.items()}
        self._lasting = dict(self._shown)
        for name, content in self._shown.items():
            Path(name).write_bytes(content.lasting)


class _Content:
    """The bytes of a file: what lasts, and what was written since."""

    def __init__(self, lasting: bytes = b""):
        self.lasting, self._written = lasting, list[bytes]()

    def write(self, data: bytes) -> None:
        self._written.append(data)

    def synchronise(self) -> None:
        self.lasting, self._written = b"".join([self.lasting, *self._written]), []

    def torn(self, draw: random.Random) -> bytes:
        """Return what is left of it when the power fails."""
        made = bytearray(self.lasting)
        at = len(made)
        for data in self._written:
            fate = draw.choice(["kept", "kept", "lost", "torn", "zeros", "other"])
            if fate == "torn":
                left = data[: draw.randrange(len(data) + 1)]
            else:
                left = {"kept": data, "lost": b"", "zeros": bytes(len(data))}.get(fate, draw.randbytes(len(data)))
            if left:
                made.extend(bytes(max(0, at - len(made))))
                made[at : at + len(left)] = left
            at += len(data)
        return bytes(made)


class _File:
    """A file that is written to."""

    def __init__(self, disk: LossyDisk, real: Any, content: _Content):
        self._disk, self._real, self._content = disk, real, content
        self.fileno: Callable[[], int] = real.fileno

    def write(self, data: Buffer) -> int:
        self._disk.step()
        plain = bytes(data)
        self._content.write(plain)
        self._real.write(plain)
        return len(plain)

    def flush(self) -> None:
        self._real.flush()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.leave(self.fileno())
        self._real.close()


class _LossyPath(type(Path())):  # type: ignore[misc]
    """A path to a file that a disk keeps."""

    disk: LossyDisk

    def open(self, mode: str = "r", *args: Any, **settings: Any) -> Any:
        return self.disk.create(self) if mode == "xb" else super().open(mode, *args, **settings)

    def replace(self, target: Any) -> Any:
        self.disk.rename(self, target)
        return type(self)(target)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            self.disk.remove(self)


class _System:
    """The module ``os``, but for what concerns a disk."""

    def __init__(self, disk: LossyDisk):
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int) -> int:
        number = os.open(path, flags)
        self._disk.enter(str(path), number)
        return number

    def fsync(self, number: int) -> None:
        self._disk.synchronise(number)

    def close(self, number: int) -> None:
        self._disk.leave(number)
        os.close(number)


def _apply(names: dict[str, _Content], name: str, content: _Content | None) -> None:
    if content is None:
        names.pop(name, None)
    else:
        names[name] = content
