#!/bin/sh
# Real pairs in the form of a synthetic set with S = I, to be evaluated like a distilled one.
# sh sh/coreset.sh [GPU] [more flags, which win]; then: sh sh/evaluate.sh 0 --ckpt_path logged_files/flickr/coreset_random_99
. "$(dirname "$0")/_env.sh"
exec python -m distill_utils.coreset random --dataset flickr --image_encoder nfnet --text_encoder bert --image_size 224 \
    --num_queries 99 --loss_type InfoNCE --temperature 0.07 --seed 0 "$@"
