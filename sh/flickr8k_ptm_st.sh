#!/bin/sh
# PTM-ST on Flickr8k: two phases of half the pairs each, straight lines for the experts' paths, an average over the steps, a full S; then
# students on one after the other: PAIRS=100 SEED=0 sh sh/flickr8k_ptm_st.sh [GPU] [more flags that both programs have]
set -e
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
PHASE=$((PAIRS / 2 - 1)) RUNS=logged_files/flickr8k/${NAME}_ptm_st
for N in 1 2; do
    $LAUNCH distill_lors.py $RUN $MATCHING --seed "$SEED$N" --name "${NAME}_ptm_st_phase${N}_seed$SEED" --num_queries "$PHASE" \
        --min_start_epoch $((N - 1)) --max_start_epoch $((N + 1)) --shortcut $((2 * N + 1)) --ema 0.99 --loss_type WBCE --sim_type full \
        --lr_img 1000 --lr_txt 1000 --lr_sim 100 --lr_lr 0.01 "$@"
done
exec python -m distill_utils.evaluate $RUN --seed "$SEED" --ckpt_path "${RUNS}_phase1_seed$SEED" --then "${RUNS}_phase2_seed$SEED" \
    --num_eval 5 --epoch_eval_train 60 "$@"
