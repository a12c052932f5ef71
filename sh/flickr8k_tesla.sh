#!/bin/sh
# The TESLA line on Flickr8k: LoRS's loss, WBCE, and S = I. PAIRS=100 SEED=0 sh sh/flickr8k_tesla.sh [GPU] [more flags, which win]
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
exec $LAUNCH distill_lors.py $RUN $MATCHING --seed "$SEED" --name "${NAME}_tesla_seed$SEED" --num_queries "$PAIRS" \
    --loss_type WBCE --sim_type identity --lr_img 1000 --lr_txt 5000 --lr_lr 0.01 "$@"
