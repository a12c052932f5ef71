#!/bin/sh
# Real pairs of Flickr30k in the form of a synthetic set with S = I, to be evaluated like a distilled one.
# METHOD=herding sh sh/coreset_flickr.sh [GPU] [more flags, which win]; random, herding, k-center, k-means, forgetting, clip, vas, vas_d.
# All but random need experts (sh sh/buffer_flickr.sh). Then: sh sh/evaluate.sh 0 --ckpt_path logged_files/flickr/coreset_herding_99
. "$(dirname "$0")/_env.sh"
exec python -m distill_utils.coreset ${METHOD:-herding} --dataset flickr --image_encoder nfnet --text_encoder bert --image_size 224 \
    --buffer_path buffers --expert 0 --num_queries 99 --loss_type InfoNCE --temperature 0.07 --unique_images true --fraction 1 --num_iters 10 --seed 0 "$@"
