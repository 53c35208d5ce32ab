#!/bin/sh
# Prepares tiny Shakespeare from a local copy: ./get_dataset.sh [FILE], or put it here as input.txt.
set -eu
cd "$(dirname "$0")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x ../../.venv/bin/python ] || PYTHON=../../.venv/bin/python
fi
export PYTHONPATH="$(cd ../.. && pwd)${PYTHONPATH:+:$PYTHONPATH}"
SHA256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
source="${1:-input.txt}"
if [ ! -f "$source" ]; then
    echo "tinyshakespeare: no file $source. No package index carries this text: download" >&2
    echo "data/tinyshakespeare/input.txt of the GitHub repository karpathy/char-rnn, then run" >&2
    echo "  $0 FILE        (data/shakespeare_char needs no download by hand)" >&2
    exit 1
fi
if [ "$(sha256sum "$source" | cut -d' ' -f1)" != "$SHA256" ]; then
    echo "tinyshakespeare: $source is not the original text (sha256 differs from $SHA256)" >&2
    exit 1
fi
exec "$PYTHON" -m gptcore data build "$source" --out . --tokenizer char ${FORCE:+--force}
