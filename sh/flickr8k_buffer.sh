#!/bin/sh
# Experts on Flickr8k: PROTOCOL=P2 sh sh/flickr8k_buffer.sh [GPU] [more flags, which win]
. "$(dirname "$0")/_env.sh"
. sh/_flickr8k.sh
exec $LAUNCH buffer.py $RUN --seed 0 --name "flickr8k_${PROTOCOL}_experts" --num_experts 3 --train_epochs 6 --eval_freq 2 \
    --batch_train 128 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE "$@"
