#!/bin/sh
# Make data/NAME from data/template, ready for `gptcore data prepare NAME`.
#   data/create_new_dataset.sh NAME [TEXT_FILE [TOKENIZER]]
# TOKENIZER: char (default), byte, tiktoken:ENCODING, sentencepiece:SIZE[:unigram] or custom:VOCABULARY_FILE, whose file
# is copied as vocab.txt.
set -eu

fail() {
    echo "error: $1" >&2
    exit 2
}

[ $# -ge 1 ] && [ $# -le 3 ] || fail "usage: create_new_dataset.sh NAME [TEXT_FILE [TOKENIZER]]"
NAME=$1
TEXT_FILE=${2:-}
TOKENIZER=${3:-char}
DATA=$(cd "$(dirname "$0")" && pwd)

case $NAME in
    '' | template | [!A-Za-z0-9]* | *[!A-Za-z0-9_-]*)
        fail "'$NAME' cannot be a data set name; use letters, digits, _ and -, a letter or digit first." ;;
esac
[ ! -e "$DATA/$NAME" ] || fail "$DATA/$NAME exists already and is left as it is; choose another name."
[ -z "$TEXT_FILE" ] || [ -f "$TEXT_FILE" ] || fail "there is no text file '$TEXT_FILE'."

VOCABULARY=
case $TOKENIZER in
    char | byte) ;;
    tiktoken:*[!a-z0-9_]* | tiktoken:) fail "'$TOKENIZER' names no tiktoken encoding; for example tiktoken:gpt2." ;;
    tiktoken:*) ;;
    sentencepiece:*[!a-z0-9:]* | sentencepiece:[!1-9]* | sentencepiece:)
        fail "'$TOKENIZER' names no size; for example sentencepiece:8000." ;;
    sentencepiece:*) ;;
    custom:*)
        VOCABULARY=${TOKENIZER#custom:}
        [ -f "$VOCABULARY" ] || fail "there is no vocabulary file '$VOCABULARY'."
        TOKENIZER=custom:vocab.txt ;;
    *) fail "unknown tokenizer '$TOKENIZER'; possible: char, byte, tiktoken:ENCODING, sentencepiece:SIZE, custom:VOCABULARY_FILE." ;;
esac

# Filled under another name and renamed, so that a half-made folder never bears the name.
NEW=$(mktemp -d "$DATA/.new-XXXXXX")
trap 'rm -rf "$NEW"' EXIT
trap 'exit 130' INT TERM
chmod 755 "$NEW"
sed "s|^TOKENIZER=.*|TOKENIZER=$TOKENIZER|" "$DATA/template/get_dataset.sh" > "$NEW/get_dataset.sh"
chmod 755 "$NEW/get_dataset.sh"
printf '# %s\n\nSource and licence of the text: (write them here)\n\nPrepare: `gptcore data prepare %s`\n' \
    "$NAME" "$NAME" > "$NEW/README.md"
[ -z "$TEXT_FILE" ] || cp "$TEXT_FILE" "$NEW/input.txt"
[ -z "$VOCABULARY" ] || cp "$VOCABULARY" "$NEW/vocab.txt"
mv "$NEW" "$DATA/$NAME"

echo "made $DATA/$NAME (tokenizer $TOKENIZER)"
[ -n "$TEXT_FILE" ] || echo "next: put your text into $DATA/$NAME/input.txt"
echo "next: gptcore data prepare $NAME"
