#!/usr/bin/env bash
# The same model with softmax and with ConSmax: trained, sampled, priced on a 130 nm chip, side by side.
. "$(dirname "$0")/run.sh"
for kind in softmax consmax; do
    run gptcore train explorations/quickstart.yaml model.attention.softmax=$kind train.max_iters="$ITERS" \
        data.dataset="$DATASET" train.sample_tokens=0 train.out_dir="$OUT/$kind"
    run gptcore sample --out_dir "$OUT/$kind" --start 'the' --max_new_tokens 120 --colorize_output
done
run gptcore inspect "$OUT"
run gptcore ppa compare "$OUT/softmax" "$OUT/consmax" --hardware edge-sky130
