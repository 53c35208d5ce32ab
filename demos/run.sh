# What the demos share: they show each command before they run it; with --dry-run they show it only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v gptcore > /dev/null || PATH="$PWD/.venv/bin:$PATH"
OUT=${OUT:-out/demo} ITERS=${ITERS:-400} DATASET=${DATASET:-shakespeare_char}

run() {
    printf '\n$'
    printf ' %q' "$@"
    printf '\n'
    [ "${dry:-}" ] || "$@"
}

case "$#:${1:-}" in
0:) dry= ;;
1:--dry-run) dry=yes ;;
*) echo "usage: $0 [--dry-run]   (environment: OUT, ITERS, DATASET)" >&2 && exit 2 ;;
esac
