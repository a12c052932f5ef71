#!/bin/sh
# The paper's ablations at toy size, in one table: losses, similarities, ranks, what is learned, initialisation.
# sh sh/ablate_toy.sh [GPU] [more flags of distill_lors.py, which win]; SEEDS="0 1 2" by default. What is finished is not done again.
set -e
. "$(dirname "$0")/_env.sh"
MORE=$*
TASK="--dataset toy --toy_size 2000,100,200 --image_size 48 --no_aug --image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert --temperature 0.07"
# Each loss has step sizes of its own. WBCE, BCE, KL, MSE and CWCL share the first, InfoNCE has the second.
STEPS="--lr_img 100 --lr_txt 100 --lr_sim 10 --lr_lr 0.003"
STEPS_INFONCE="--lr_img 100 --lr_txt 1000 --lr_sim 10 --lr_lr 0.0003"

distil() {
    NAME=ablate_$1_seed$SEED
    shift
    python distill_lors.py $TASK --seed $SEED --name $NAME --buffer_path buffers/ablate_seed$SEED \
        --num_queries 50 --mini_batch_size 20 --syn_steps 8 --expert_epochs 1 --max_start_epoch 2 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 \
        --loss_type WBCE --sim_type lowrank --sim_rank 5 --alpha 1 $STEPS --gradient truncated --second_order finite \
        --Iteration 40 --eval_it 40 --num_eval 2 --num_eval_during 2 --measurements 5 --epoch_eval_train 40 "$@" $MORE
}

for SEED in ${SEEDS:-0 1 2}; do
    python buffer.py $TASK --seed $SEED --name experts_ablate_seed$SEED --buffer_path buffers/ablate_seed$SEED --num_experts 3 --train_epochs 3 \
        --eval_freq 3 --batch_train 128 --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --loss_type InfoNCE

    distil lors                                                             # WBCE, low-rank S of rank 5
    distil full --sim_type full
    distil tesla --sim_type identity                                        # WBCE, S = I: what freezing the similarity is
    distil mtt_vl --loss_type InfoNCE --sim_type identity $STEPS_INFONCE
    distil expert --sim_type expert                                         # S computed by an expert, not learned

    distil infonce --loss_type InfoNCE $STEPS_INFONCE
    distil cwcl --loss_type CWCL
    distil bce --loss_type BCE
    distil kl --loss_type KL
    distil mse --loss_type MSE

    for RANK in 1 10 20; do
        distil rank_$RANK --sim_rank $RANK
    done

    distil fixed_images --learn texts,similarity,lrs
    distil fixed_texts --learn images,similarity,lrs
    distil noise_images --pix_init noise
    distil noise_texts --txt_init noise
done
python -m distill_utils.compare logged_files/toy/ablate_*_seed[0-9]*
