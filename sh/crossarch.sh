#!/bin/sh
# One distilled set, students of other architectures: image towers in turn beside the set's own text encoder.
# sh sh/crossarch.sh [GPU] --ckpt_path logged_files/flickr/lors_99 [more flags, which win, such as --text_encoders bert,clip]
. "$(dirname "$0")/_env.sh"
exec $LAUNCH -m distill_utils.crossarch \
    --image_encoders nfnet,nf_resnet50,nf_regnet,resnet18,resnet50,vit,convnext,efficientvit_m5 \
    --num_eval 5 --epoch_eval_train 100 --batch_eval 128 --seed 0 "$@"
