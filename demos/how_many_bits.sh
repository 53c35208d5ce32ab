#!/usr/bin/env bash
# How many bits does a model need? Two seeds of two softmaxes as a sweep, one of them at fewer bits without more training.
. "$(dirname "$0")/run.sh"
run gptcore sweep explorations/sweeps/softmax_norm.yaml train.max_iters="$ITERS" data.dataset="$DATASET" -o "$OUT/sweep"
run gptcore train explorations/quickstart.yaml train.max_iters="$ITERS" data.dataset="$DATASET" \
    train.sample_tokens=0 train.out_dir="$OUT/model"
run gptcore quantize --out_dir "$OUT/model" --per_layer 3
run gptcore eval --out_dir "$OUT/model" --text README.md --unknown drop
