#!/bin/sh
# From a fresh machine to a distilled toy data set, its results and its report, on a CPU: sh sh/quickstart.sh [GPU] [more flags]
# More flags go to every program, so give those that all have, such as --image_size. SEED=1 sh sh/quickstart.sh repeats it under another seed.
set -e
sh "$(dirname "$0")/setup.sh"
. "$(dirname "$0")/_env.sh"
SEED=${SEED:-0}
if [ "$SEED" = 0 ]; then NAME=quickstart; else NAME=quickstart_seed$SEED; fi

# toy_nfnet is pretrained on other scenes at its first use, as an ImageNet tower is on other photos, and frozen: heads train (protocol P2).
TASK="--dataset toy --toy_size 2000,200,300 --image_size 48 --no_aug --image_encoder toy_nfnet --image_trainable false --text_encoder toy_bert \
    --temperature 0.07"
RUN="--seed $SEED --buffer_path buffers/$NAME"
MATCHING="--num_queries 30 --mini_batch_size 20 --syn_steps 8 --expert_epochs 1 --max_start_epoch 1 --gradient truncated --second_order finite \
    --lr_img 100 --lr_txt 1000 --lr_lr 0.01 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type WBCE \
    --Iteration 150 --eval_it 50 --num_eval 5 --num_eval_during 3 --measurements 5 --epoch_eval_train 60"

echo "--- 1/5 experts on all 10,000 real pairs"
python buffer.py $TASK $RUN --name "$NAME" --num_experts 3 --train_epochs 4 --eval_freq 1 --batch_train 128 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE "$@"

echo "--- 2/5 LoRS: distilling 30 pairs and their similarity"
python distill_lors.py $TASK $RUN --name "$NAME" $MATCHING --sim_type lowrank --sim_rank 5 --alpha 1 --lr_sim 10 "$@"

echo "--- 3/5 the control: the same with S = I"
python distill_lors.py $TASK $RUN --name "identity_$NAME" $MATCHING --sim_type identity "$@"

echo "--- 4/5 evaluating it beside the control and random real pairs"
python -m distill_utils.evaluate $TASK $RUN --name "$NAME" --ckpt_path "logged_files/toy/$NAME" --identity "logged_files/toy/identity_$NAME" \
    --baselines --num_eval 5 --epoch_eval_train 60 "$@"

echo "--- 5/5 report"
python -m distill_utils.report "logged_files/toy/$NAME"
