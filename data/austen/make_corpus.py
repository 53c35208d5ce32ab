"""Make the six novels of Jane Austen: python make_corpus.py OUT.txt [ARCHIVE]

From the Debian package r-cran-janeaustenr, which holds them as an R lazy-load database: Rdata.rdx says at which offset
of Rdata.rdb each object lies; an object is its length (big endian) and a zlib stream of R's binary serialisation (R
Internals, "Serialization Formats"), here of one vector of strings, a line of the novel each.
"""

import gzip
import io
import struct
import sys
import tarfile
import zlib

from gptcore.corpus import Package, install

PACKAGE = Package(client="apt-get", requirement="r-cran-janeaustenr", pattern="*.deb")
TEXT_SHA256 = "ff4250a469524dbfeda7e414bfa9af1bdafc8464cedd6ea7c44b165c931200b1"
FOLDER = "./usr/lib/R/site-library/janeaustenr/data/"
NOVELS = 6
STRINGS, STRING, INTEGERS = 16, 9, 13  # types of R's objects


def text_of(archive: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(member(archive, b"data.tar"))) as files:
        index, objects = (files.extractfile(FOLDER + name).read() for name in ("Rdata.rdx", "Rdata.rdb"))
    novels = []
    for offset, length in places(gzip.decompress(index)):
        (unpacked,) = struct.unpack_from(">I", objects, offset)
        data = zlib.decompress(objects[offset + 4 : offset + length])
        assert len(data) == unpacked
        novels.append("\n".join(strings(data)).strip() + "\n")
    assert len(novels) == NOVELS
    return "\n".join(novels)


def member(deb: bytes, start_of_name: bytes) -> bytes:
    """A member of a .deb, which is an `ar` archive: headers of 60 bytes, contents padded to even lengths."""
    assert deb.startswith(b"!<arch>\n")
    at = 8
    while at < len(deb):
        name, size = deb[at : at + 16], int(deb[at + 48 : at + 58])
        if name.startswith(start_of_name):
            return deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError(f"no member {start_of_name.decode()}")


def places(index: bytes) -> list[tuple[int, int]]:
    """(offset, length) of each object: the pairs of integers in the index, in alphabetical order of their names."""
    pair = struct.pack(">II", INTEGERS, 2)
    at = [i + len(pair) for i in range(0, len(index), 1) if index.startswith(pair, i)]
    return [struct.unpack_from(">II", index, i) for i in at]


def strings(data: bytes) -> list[str]:
    """A serialised vector of strings (format X: big endian)."""
    assert data.startswith(b"X\n")
    (version,) = struct.unpack_from(">I", data, 2)
    at = 14
    if version == 3:  # the native encoding follows
        at += 4 + struct.unpack_from(">I", data, at)[0]
    kind, count = struct.unpack_from(">II", data, at)
    assert kind & 0xFF == STRINGS
    at += 8
    found = []
    for _ in range(count):
        flags, length = struct.unpack_from(">Ii", data, at)
        assert flags & 0xFF == STRING and length >= 0
        at += 8
        found.append(data[at : at + length].decode("utf-8"))
        at += length
    return found


if __name__ == "__main__":
    sys.exit(install(PACKAGE, text_of, TEXT_SHA256, sys.argv[1:]))
