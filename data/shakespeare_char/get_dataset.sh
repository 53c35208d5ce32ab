#!/bin/sh
# Prepare this data set: the works of Shakespeare, one token per character. FORCE=1 encodes again.
set -eu
cd "$(dirname "$0")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x ../../.venv/bin/python ] || PYTHON=../../.venv/bin/python
fi
export PYTHONPATH="$(cd ../.. && pwd)${PYTHONPATH:+:$PYTHONPATH}"
CORPUS_SHA256=6462cdce1d74411bc872e705172d5787fc81284e286d618d44d2b74654e61078

if [ -z "${FORCE:-}" ] && [ -f meta.pkl ] &&
    "$PYTHON" -m gptcore data check "$PWD" --tokenizer char --source_sha256 "$CORPUS_SHA256"; then
    exit 0
fi
"$PYTHON" make_corpus.py input.txt
"$PYTHON" -m gptcore data build input.txt --out . --tokenizer char ${FORCE:+--force}
