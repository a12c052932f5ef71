#!/bin/sh
# CovMatch on Flickr8k, with the text encoder frozen (our reading): PAIRS=100 SEED=0 sh sh/flickr8k_covmatch.sh [GPU] [more flags, which win]
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
exec $LAUNCH distill_lors.py $RUN $MATCHING --seed "$SEED" --name "${NAME}_covmatch_seed$SEED" --num_queries "$PAIRS" --objective covmatch \
    --loss_type InfoNCE --sim_type identity --real_batch 512 --covariance_rho 2 --distribution_weight 0.1 --reset_it 50 \
    --learn images,texts --lr_img 1000 --lr_txt 10 --Iteration 500 --eval_it 100 "$@"
