#!/bin/sh
# MDM on Flickr8k: agreement and discrepancy of the modalities under merged experts, from k-means pairs: PAIRS=100 SEED=0
# sh sh/flickr8k_mdm.sh [GPU] [more flags, which win]. Students train at .1, as published.
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
exec $LAUNCH distill_lors.py $RUN $MATCHING --seed "$SEED" --name "${NAME}_mdm_seed$SEED" --num_queries "$PAIRS" --objective mdm \
    --loss_type InfoNCE --sim_type identity --init k-means --real_batch 64 --distribution_weight 0.8 --kernel_sigma 0.5 --clip_grad 1 \
    --learn images,texts --lr_img 100 --lr_txt 10 --Iteration 500 --eval_it 100 "$@"
