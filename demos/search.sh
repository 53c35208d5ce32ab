#!/usr/bin/env bash
# Which change pays? A greedy search for the best loss per added parameter, beside a random one of as many trials.
. "$(dirname "$0")/run.sh"
run gptcore search explorations/search/params_small.yaml budget.trials=60 train.max_iters="$ITERS" \
    data.dataset="$DATASET" --control 1 -o "$OUT/search"
run gptcore monitor "$OUT/search" --once
run gptcore train "$OUT/search/winner.yaml" train.max_iters="$ITERS" train.out_dir="$OUT/winner"
