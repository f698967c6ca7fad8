"""Where archives come from, a server or a folder seen alike, and how their files get to where they belong."""

from pathlib import Path
from re import Pattern

from coco.archives import BadArchiveError, extract, wanted_members
from support.errors import RunError, UsageError
from support.files import require_space


class Source:
    """A place that holds archives under known names.

    Args:
        address: a URL prefix, or a local folder, whose archives are read in place and never removed.
        downloads: our own folder, for archives on their way from a server.
        keep: leave them there when their files are unpacked.
    """

    def __init__(self, address: str, downloads: Path, keep: bool = False):
        self.is_remote = address.lower().startswith(("http://", "https://"))
        self.address, self.downloads, self.keep = address.rstrip("/") + "/", downloads, keep
        if not self.is_remote and not Path(address).is_dir():
            raise UsageError(f"--source {address}: no such folder (and an address begins with https://)")

    def size(self, name: str) -> int:
        """The archive's size in bytes, 0 where the server does not say.

        Raises:
            UsageError: it is not there.
        """
        if self.is_remote and self._download(name).exists():
            return self._download(name).stat().st_size
        if self.is_remote:
            from coco.downloads import remote_size  # here, so that only who downloads waits for requests

            return remote_size(self.address + name) or 0
        path = Path(self.address, name)
        if not path.is_file():
            raise UsageError(f"{path} is not there")
        return path.stat().st_size

    def require_room(self, folders: dict[str, Path]) -> None:
        """Asks the source for each archive and the disk for room, before the first byte.

        Args:
            folders: by archive name, the folder where it will be unpacked.
        """
        if not folders:
            return
        packed, unpacked = [0], 0
        for name, folder in folders.items():
            size = self.size(name)
            unpacked += max(
                0, size - _bytes_in(folder) - _bytes_in(folder.with_name(folder.name + ".partial"))
            )
            packed.append(max(0, size - _bytes_in(self.downloads, Path(name).name)) if self.is_remote else 0)
        # An archive of pictures is about as large as they are, and is removed before the next one comes.
        needed = unpacked + (sum(packed) if self.keep else max(packed))
        require_space(self.downloads.parent, needed, f"what is to come from {self.address}")

    def unpack(
        self, name: str, pattern: Pattern[str], folder: Path, pin: tuple[int, str, str] | None
    ) -> None:
        """Brings the archive's files whose names match `pattern` into `folder`, whole.

        Args:
            name: the archive.
            pattern: of the full names in the archive.
            folder: where the files go, without their folders in the archive.
            pin: size, name of the digest and digest, where they are known.

        Raises:
            BadArchiveError: an archive in a local folder is damaged or hostile.
            RunError: a download is, or it could not be had.
        """
        archive = self._fetch(name, pin)
        try:
            members = wanted_members(archive, pattern)
            if not members:
                raise BadArchiveError(f"{archive} holds no file with a name like {pattern.pattern}")
            extract(archive, members, folder)
        except BadArchiveError as error:
            if not self.is_remote:
                raise
            archive.unlink()
            raise RunError(f"{error} (the download was removed)") from None

    def discard(self, name: str) -> None:
        """Removes a download that is unpacked, unless it is to be kept; never the user's own archive."""
        if self.is_remote and not self.keep:
            self._download(name).unlink(missing_ok=True)

    def _download(self, name: str) -> Path:
        return self.downloads / Path(name).name

    def _fetch(self, name: str, pin: tuple[int, str, str] | None) -> Path:
        if not self.is_remote:
            return Path(self.address, name)
        from coco.downloads import Pin, download

        download(self.address + name, self._download(name), Pin(*pin) if pin else None)
        return self._download(name)


def _bytes_in(folder: Path, beginning: str = "") -> int:
    """The size of the files directly in `folder` whose names begin like this."""
    return sum(path.stat().st_size for path in folder.glob(f"{beginning}*") if path.is_file())
