#!/bin/sh
# From photos and captions of your own to a distilled set, its results and its report:
# sh sh/quickstart_photos.sh IMAGES [ANNOTATIONS] [GPU] [more flags]
# IMAGES: a folder with metadata.jsonl, or with the folders train, val and test that each have one (docs/data.md); with ANNOTATIONS,
# a folder of train.json, val.json and test.json in Karpathy's layout, the folder that their image paths start from.
# More flags go to every program and win, so give those that all have, such as another encoder's:
#   --image_encoder resnet50 --text_encoder FOLDER --checkpoint_dir FOLDER --image_size 224
# In the environment: PAIRS to learn, outer STEPS, the SEED, and RUN, the name of it all.
set -e
in_folder() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
case "${1:-}" in
    '' | -*) echo "error: give the folder of your photos: sh sh/quickstart_photos.sh IMAGES [ANNOTATIONS] [GPU] [more flags]" >&2; exit 2 ;;
esac
IMAGES=$(in_folder "$1"); shift
case "${1:-}" in
    '' | -* | cpu | [0-9] | [0-9][0-9] | [0-9]*,*) ANNOTATIONS=$IMAGES DATASET=imagefolder ;;
    *) ANNOTATIONS=$(in_folder "$1") DATASET=karpathy; shift ;;
esac
sh "$(dirname "$0")/setup.sh"
. "$(dirname "$0")/_env.sh"
PAIRS=${PAIRS:-99} STEPS=${STEPS:-200} SEED=${SEED:-0}
if [ "$SEED" = 0 ]; then RUN=${RUN:-quickstart_photos}; else RUN=${RUN:-quickstart_photos_seed$SEED}; fi

# The image tower is frozen: a head on it and the text head are trained and matched.
set -- --dataset "$DATASET" --image_root "$IMAGES" --ann_root "$ANNOTATIONS" --image_size 128 --no_aug \
    --image_encoder nfnet --text_encoder bert --image_pretrained true --image_trainable false \
    --checkpoint_dir distill_utils/checkpoints --temperature 0.07 --seed "$SEED" --name "$RUN" --buffer_path "buffers/$RUN" "$@"

echo "--- 1/4 experts on all real pairs"
python buffer.py --num_experts 3 --train_epochs 4 --eval_freq 1 --batch_train 128 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE "$@"

echo "--- 2/4 distilling $PAIRS pairs and their similarity"
python distill_lors.py --num_queries "$PAIRS" --mini_batch_size 20 --syn_steps 8 --expert_epochs 1 --max_start_epoch 1 \
    --lr_img 1000 --lr_txt 1000 --lr_sim 10 --lr_lr 0.01 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 \
    --loss_type WBCE --sim_type lowrank --sim_rank 10 --alpha 1 --gradient truncated --second_order finite \
    --Iteration "$STEPS" --eval_it 50 --num_eval 5 --num_eval_during 2 --measurements 5 --epoch_eval_train 100 "$@"

echo "--- 3/4 evaluating it beside random real pairs"
python -m distill_utils.evaluate --ckpt_path "logged_files/$DATASET/$RUN" --baselines --num_eval 5 --epoch_eval_train 100 "$@"

echo "--- 4/4 report"
python -m distill_utils.report "logged_files/$DATASET/$RUN"
