#!/bin/sh
# AMD on Flickr8k: LoRS with a start epoch for each tower, of ranges read off the experts, from k-means pairs: PAIRS=100 SEED=0
# sh sh/flickr8k_amd.sh [GPU] [more flags, which win]
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
exec $LAUNCH distill_lors.py $RUN $MATCHING --seed "$SEED" --name "${NAME}_amd_seed$SEED" --num_queries $((PAIRS - 1)) \
    --loss_type WBCE --sim_type lowrank --sim_rank 10 --alpha 1 --lr_img 1000 --lr_txt 1000 --lr_sim 10 --lr_lr 0.01 \
    --start_epochs ranges --init k-means "$@"
