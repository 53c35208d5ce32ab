#!/bin/sh
# Prepare this data set from the text input.txt in this folder. FORCE=1 encodes again.
set -eu
cd "$(dirname "$0")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x ../../.venv/bin/python ] || PYTHON=../../.venv/bin/python
fi
export PYTHONPATH="$(cd ../.. && pwd)${PYTHONPATH:+:$PYTHONPATH}"
TOKENIZER=char

# To download the text instead of putting it here: write it under another name, check its hash, then rename it.
if [ ! -f input.txt ]; then
    echo "error: $PWD/input.txt is missing. Put your UTF-8 text there and run this again." >&2
    exit 1
fi
"$PYTHON" -m gptcore data build input.txt --out . --tokenizer "$TOKENIZER" ${FORCE:+--force}
