#!/bin/sh
# Prepare this data set: the King James Bible, one token per character. FORCE=1 encodes again.
set -eu
cd "$(dirname "$0")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x ../../.venv/bin/python ] || PYTHON=../../.venv/bin/python
fi
export PYTHONPATH="$(cd ../.. && pwd)${PYTHONPATH:+:$PYTHONPATH}"
CORPUS_SHA256=b8a2d6f356c8b724bf88c8c4029c97bd6995eceb532e8887495b18e70aec1daa

if [ -z "${FORCE:-}" ] && [ -f meta.pkl ] &&
    "$PYTHON" -m gptcore data check "$PWD" --tokenizer char --source_sha256 "$CORPUS_SHA256"; then
    exit 0
fi
"$PYTHON" make_corpus.py input.txt
"$PYTHON" -m gptcore data build input.txt --out . --tokenizer char ${FORCE:+--force}
