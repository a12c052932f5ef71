#!/bin/sh
# Real pairs of Flickr8k, chosen in several ways and evaluated at the learning rate that is best on val: PAIRS=100 SEED=0
# sh sh/flickr8k_coresets.sh [GPU] [more flags that both programs have]; CORESETS are those to run. What is done is not done again.
set -e
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
for METHOD in ${CORESETS:-random herding k-center k-means pds forgetting}; do
    CORESET=${NAME}_${METHOD}_seed$SEED
    FOLDER=logged_files/flickr8k/$CORESET
    if grep -qs '"distilled"' "$FOLDER/results.json"; then continue; fi
    python -m distill_utils.coreset "$METHOD" $RUN --seed "$SEED" --name "$CORESET" --num_queries "$PAIRS" --loss_type InfoNCE \
        --unique_images true "$@"
    python -m distill_utils.evaluate $RUN --seed "$SEED" --name "$CORESET" --ckpt_path "$FOLDER" --num_eval 3 --epoch_eval_train 60 \
        --rates 0.01,0.03,0.1,0.3 "$@"
done
