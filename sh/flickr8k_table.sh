#!/bin/sh
# Tables of Flickr8k: sh sh/flickr8k_table.sh [GPU] [more flags that all programs have]. In the environment: METHODS, by default
# "lors lors_full mtt_vl tesla coresets"; SEEDS "0 1 2", BUDGETS "100", PROTOCOL P2. What is finished is not done again; what was stopped goes on.
# The field's methods: METHODS="lors mtt_vl amd repblend mdm covmatch ptm_st" sh sh/flickr8k_table.sh
set -e
. "$(dirname "$0")/_env.sh"
export PROTOCOL="${PROTOCOL:-P2}" LAUNCH  # the files below take the GPU from the environment, too
sh sh/flickr8k_buffer.sh "$@"
for PAIRS in ${BUDGETS:-100}; do
    for SEED in ${SEEDS:-0 1 2}; do
        export PAIRS SEED
        for METHOD in ${METHODS:-lors lors_full mtt_vl tesla coresets}; do
            case "$METHOD" in
                lors_full) sh sh/flickr8k_lors.sh --sim_type full --lr_sim 100 --name "flickr8k_${PROTOCOL}_${PAIRS}_lors_full_seed$SEED" "$@" ;;
                *) sh "sh/flickr8k_$METHOD.sh" "$@" ;;
            esac
        done
    done
done
python -m distill_utils.compare logged_files/flickr8k/flickr8k_"$PROTOCOL"_*_seed[0-9]*
