#!/bin/sh
# Prepare this data set: the Brown corpus, one token per character. FORCE=1 encodes again.
set -eu
cd "$(dirname "$0")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x ../../.venv/bin/python ] || PYTHON=../../.venv/bin/python
fi
export PYTHONPATH="$(cd ../.. && pwd)${PYTHONPATH:+:$PYTHONPATH}"
CORPUS_SHA256=2ea1605d99e861f333b471932afd7f1666c1be7f63733eee7aa7e26cf4ab00dc

if [ -z "${FORCE:-}" ] && [ -f meta.pkl ] &&
    "$PYTHON" -m gptcore data check "$PWD" --tokenizer char --source_sha256 "$CORPUS_SHA256"; then
    exit 0
fi
"$PYTHON" make_corpus.py input.txt
"$PYTHON" -m gptcore data build input.txt --out . --tokenizer char ${FORCE:+--force}
