# Sourced by the flickr8k_*.sh files after _env.sh. From the environment: PROTOCOL is P2 (heads on frozen towers, the default)
# or P1 (the image tower trains); PAIRS 100, 200 or 500, the storage in plain pairs; SEED that of pairs and students
# (the experts are the same for all).
# RUN are the flags that all programs of an experiment share, with a tower that a CPU can bear: other encoders, sizes and
# folders are given as further flags, to every file alike.
PROTOCOL=${PROTOCOL:-P2} PAIRS=${PAIRS:-100} SEED=${SEED:-0}
case "$PROTOCOL" in
    P1) TRAINS="--image_trainable true --freeze_bn true" ;;
    P2) TRAINS="--image_trainable false --freeze_bn false" ;;
    *) echo "error: PROTOCOL is '$PROTOCOL' in the environment, expected P1 or P2" >&2; exit 2 ;;
esac
RUN="--dataset flickr8k --image_size 112 --no_aug --image_encoder efficientnet_lite0 --image_pretrained true $TRAINS \
    --text_encoder sentence-transformers/all-MiniLM-L6-v2 --temperature 0.07 --buffer_path buffers/flickr8k_$PROTOCOL"
NAME=flickr8k_${PROTOCOL}_${PAIRS}
# What every distillation here shares. Starts are the experts' first snapshots: from later ones eight inner steps get nowhere.
MATCHING="--mini_batch_size 20 --syn_steps 8 --expert_epochs 1 --max_start_epoch 1 --gradient truncated --second_order finite \
    --lr_teacher_img 0.1 --lr_teacher_txt 0.1 --momentum_syn 0.5 --momentum_lr 0.5 --momentum_sim 0.5 \
    --Iteration 200 --eval_it 50 --num_eval 5 --num_eval_during 2 --measurements 5 --epoch_eval_train 60 --batch_eval 128"
