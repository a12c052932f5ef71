#!/bin/sh
# LoRS on Flickr8k: WBCE and a learned S of low rank, or a full one: PAIRS=100 SEED=0 sh sh/flickr8k_lors.sh [GPU] [--sim_type full] [more flags]
# One pair less than PAIRS leaves the room that S takes. Experts first: sh sh/flickr8k_buffer.sh
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
exec $LAUNCH distill_lors.py $RUN $MATCHING --seed "$SEED" --name "${NAME}_lors_seed$SEED" --num_queries $((PAIRS - 1)) \
    --loss_type WBCE --sim_type lowrank --sim_rank 10 --alpha 1 --lr_img 1000 --lr_txt 1000 --lr_sim 10 --lr_lr 0.01 "$@"
