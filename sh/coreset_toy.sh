#!/bin/sh
# Every way to choose real pairs, at equal budget, in one table: sh sh/coreset_toy.sh [GPU] [more flags that all three programs have]; SEEDS="0 1 2" by default.
set -e
. "$(dirname "$0")/_env.sh"
MORE=$*
TASK="--dataset toy --toy_size 2000,100,200 --image_size 48 --no_aug --image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert --temperature 0.07"

for SEED in ${SEEDS:-0 1 2}; do
    python buffer.py $TASK --seed $SEED --name coreset_experts_seed$SEED --buffer_path buffers/coreset_seed$SEED --num_experts 1 --train_epochs 6 \
        --eval_freq 6 --batch_train 128 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE $MORE
    for METHOD in random herding k-center k-means pds forgetting clip vas vas_d; do
        python -m distill_utils.coreset $METHOD $TASK --seed $SEED --name coreset_${METHOD}_seed$SEED --buffer_path buffers/coreset_seed$SEED \
            --num_queries 50 --loss_type InfoNCE --unique_images true --fraction 0.5 --num_iters 10 $MORE
        python -m distill_utils.evaluate $TASK --seed $SEED --name coreset_${METHOD}_seed$SEED --ckpt_path logged_files/toy/coreset_${METHOD}_seed$SEED \
            --num_eval 3 --epoch_eval_train 40 $MORE
    done
done
python -m distill_utils.compare logged_files/toy/coreset_random_seed* logged_files/toy/coreset_herding_seed* logged_files/toy/coreset_k-center_seed* \
    logged_files/toy/coreset_k-means_seed* logged_files/toy/coreset_pds_seed* logged_files/toy/coreset_forgetting_seed* logged_files/toy/coreset_clip_seed* \
    logged_files/toy/coreset_vas_seed* logged_files/toy/coreset_vas_d_seed*
