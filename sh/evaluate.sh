#!/bin/sh
# Fresh students on a distilled set, beside random real pairs and the experts.
# sh sh/evaluate.sh [GPU] --ckpt_path logged_files/flickr/lors_99 [more flags, which win]
. "$(dirname "$0")/_env.sh"
exec $LAUNCH -m distill_utils.evaluate --dataset flickr --image_encoder nfnet --text_encoder bert --image_size 224 \
    --buffer_path buffers --num_eval 5 --epoch_eval_train 100 --batch_eval 128 --temperature 0.07 --seed 0 "$@"
