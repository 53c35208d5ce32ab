#!/bin/sh
# Prepare this data set: Jane Austen's novels, one token per character. FORCE=1 encodes again.
set -eu
cd "$(dirname "$0")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x ../../.venv/bin/python ] || PYTHON=../../.venv/bin/python
fi
export PYTHONPATH="$(cd ../.. && pwd)${PYTHONPATH:+:$PYTHONPATH}"
CORPUS_SHA256=ff4250a469524dbfeda7e414bfa9af1bdafc8464cedd6ea7c44b165c931200b1

if [ -z "${FORCE:-}" ] && [ -f meta.pkl ] &&
    "$PYTHON" -m gptcore data check "$PWD" --tokenizer char --source_sha256 "$CORPUS_SHA256"; then
    exit 0
fi
"$PYTHON" make_corpus.py input.txt
"$PYTHON" -m gptcore data build input.txt --out . --tokenizer char ${FORCE:+--force}
