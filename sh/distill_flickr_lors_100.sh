#!/bin/sh
# LoRS, Flickr30k, 99 pairs (as much storage as 100 plain ones): the published hyper-parameters.
# sh sh/distill_flickr_lors_100.sh [GPU] [more flags, which win]; experts first: sh sh/buffer_flickr.sh
. "$(dirname "$0")/_env.sh"
exec $LAUNCH distill_lors.py --dataset flickr --image_encoder nfnet --text_encoder bert --image_size 224 \
    --buffer_path buffers --num_queries 99 --mini_batch_size 20 --syn_steps 8 --expert_epochs 1 --max_start_epoch 2 \
    --lr_img 100 --lr_txt 100 --lr_sim 10 --lr_lr 0.01 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 \
    --momentum_syn 0.5 --momentum_lr 0.5 --momentum_sim 0.5 --clamp_lr 0.001 --max_lr 10 \
    --loss_type WBCE --sim_type lowrank --sim_rank 10 --alpha 3 --temperature 0.07 \
    --pix_init real --txt_init real --gradient truncated --second_order finite \
    --Iteration 3000 --eval_it 50 --num_eval 5 --num_eval_during 2 --measurements 5 \
    --epoch_eval_train 100 --batch_eval 128 --seed 0 "$@"
