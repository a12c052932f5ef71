#!/bin/sh
# The whole table of Flickr8k: sh sh/flickr8k_table.sh [GPU] [more flags that all programs have]. SEEDS, BUDGETS and PROTOCOL in the
# environment: by default "0 1 2", "100" and P2. What is finished is not done again; what was stopped goes on.
set -e
. "$(dirname "$0")/_env.sh"
export PROTOCOL="${PROTOCOL:-P2}" LAUNCH  # the files below take the GPU from the environment, too
sh sh/flickr8k_buffer.sh "$@"
for PAIRS in ${BUDGETS:-100}; do
    for SEED in ${SEEDS:-0 1 2}; do
        export PAIRS SEED
        sh sh/flickr8k_lors.sh "$@"
        sh sh/flickr8k_lors.sh --sim_type full --lr_sim 100 --name "flickr8k_${PROTOCOL}_${PAIRS}_lors_full_seed$SEED" "$@"
        sh sh/flickr8k_mtt_vl.sh "$@"
        sh sh/flickr8k_tesla.sh "$@"
        sh sh/flickr8k_coresets.sh "$@"
    done
done
python -m distill_utils.compare logged_files/flickr8k/flickr8k_"$PROTOCOL"_*_seed[0-9]*
