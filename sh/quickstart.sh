#!/bin/sh
# From a fresh machine to a distilled toy data set, its results and its report, on a CPU: sh sh/quickstart.sh [GPU] [more flags]
# More flags go to every program, so give those that all have, such as --image_size. SEED=1 sh sh/quickstart.sh repeats it under another seed.
set -e
sh "$(dirname "$0")/setup.sh"
. "$(dirname "$0")/_env.sh"
SEED=${SEED:-0}
if [ "$SEED" = 0 ]; then NAME=quickstart; else NAME=quickstart_seed$SEED; fi

TASK="--dataset toy --toy_size 2000,200,300 --image_size 48 --no_aug --image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert --temperature 0.07"
RUN="--seed $SEED --name $NAME --buffer_path buffers/$NAME"

echo "--- 1/4 experts on all 10,000 real pairs"
python buffer.py $TASK $RUN --num_experts 3 --train_epochs 3 --eval_freq 1 --batch_train 128 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE "$@"

echo "--- 2/4 distilling 30 pairs"
python distill_lors.py $TASK $RUN --num_queries 30 --mini_batch_size 20 --syn_steps 8 --expert_epochs 1 --max_start_epoch 2 \
    --lr_img 100 --lr_txt 5000 --lr_lr 0.0003 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 \
    --loss_type InfoNCE --sim_type identity --gradient truncated --second_order finite \
    --Iteration 140 --eval_it 35 --num_eval 3 --num_eval_during 3 --measurements 5 --epoch_eval_train 60 "$@"

echo "--- 3/4 evaluating it beside random real pairs"
python -m distill_utils.evaluate $TASK $RUN --ckpt_path "logged_files/toy/$NAME" --baselines --num_eval 5 --epoch_eval_train 60 "$@"

echo "--- 4/4 report"
python -m distill_utils.report "logged_files/toy/$NAME"
