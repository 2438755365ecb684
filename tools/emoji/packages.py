"""Fetch pinned packages of npm and PyPI with their own clients, check them, and read them in place."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import cache_folder, sha256
from ldmrt.runtime.files.writing import temporary_folder


@dataclass(frozen=True)
class Package:
    """A release on a registry, and the client that fetches it."""

    client: str  # "npm" or "pip"
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        """Write the name and the version."""
        return f"{self.name} {self.version}"

    @property
    def file(self) -> str:
        """Return its file name in the cache, without a suffix, as `read` recognises the format by the content."""
        return f"{self.name}-{self.version}".lstrip("@").replace("/", "-")


def default_cache() -> Path:
    """Return the folder in the user's cache where packages are kept between builds."""
    if (folder := cache_folder()) is None:
        raise LdmrtError("data", "there is no home folder to keep downloads in", hint="--cache FOLDER")
    return folder / "packages"


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's file in `cache`, downloaded unless it exists with the right checksum.

    Raises:
        LdmrtError: The client is missing or fails, or the file is not the pinned one.
    """
    path = cache / package.file
    if path.is_file() and sha256(path) == package.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path) as folder:
        download(package, folder)
        (fetched,) = folder.iterdir()
        if (digest := sha256(fetched)) != package.sha256:
            hint = f"ask {package.client} which mirror it uses: a release never changes"
            wanted = f"SHA-256 {package.sha256}"
            raise LdmrtError(str(package), "is not the pinned file", expected=wanted, found=digest, hint=hint)
        os.replace(fetched, path)
    return path


def download(package: Package, folder: Path) -> None:
    """Download the package's file into the empty `folder` with the registry's own client."""
    if package.client == "npm":
        if (npm := shutil.which("npm")) is None:
            raise LdmrtError(str(package), "npm is not on the PATH", hint="install Node.js, which brings npm")
        command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--loglevel=error"]
    else:
        try:  # `find_spec` would have setuptools give up its distutils, which torch.compile asks for
            importlib.metadata.version("pip")
        except importlib.metadata.PackageNotFoundError:
            hint = f"{sys.executable} -m ensurepip"
            raise LdmrtError(str(package), "this Python has no pip", hint=hint) from None
        command = [sys.executable, "-m", "pip", "download", f"{package.name}=={package.version}"]
        command += ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if ran.returncode:
        errors = re.findall(r"^(?:npm err\S*|error:) *(.+)", ran.stderr, re.IGNORECASE | re.MULTILINE)[:3]
        found = "; ".join(errors) or f"exit status {ran.returncode}"
        hint = "check the network and run again: what was fetched is kept"
        raise LdmrtError(str(package), f"{package.client} could not fetch it", found=found, hint=hint)


def read(archive: Path, pattern: str) -> dict[str, bytes]:
    """Read the members of a wheel or gzipped tar whose full name matches `pattern`; keys are the pattern's group."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return {m[1]: wheel.read(name) for name in wheel.namelist() if (m := re.fullmatch(pattern, name))}
    members: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if (m := re.fullmatch(pattern, member.name)) and (file := tar.extractfile(member)):
                members[m[1]] = file.read()
    return members
