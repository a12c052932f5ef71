#!/bin/sh
# Flickr30k experts: 20 trajectories of 10 epochs, NFNet-L0 and BERT, as published.
# sh sh/buffer_flickr.sh [GPU] [more flags, which win]
. "$(dirname "$0")/_env.sh"
exec $LAUNCH buffer.py --dataset flickr --image_encoder nfnet --text_encoder bert --image_size 224 \
    --buffer_path buffers --num_experts 20 --train_epochs 10 --batch_train 128 \
    --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE --temperature 0.07 --eval_freq 5 --seed 0 "$@"
