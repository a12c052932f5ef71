#!/bin/sh
# Fresh students on a distilled set, whose data, encoders, loss and temperature the set itself names.
# sh sh/evaluate.sh [GPU] --ckpt_path logged_files/flickr/lors_99 [more flags, which win]; add --baselines for those rows.
. "$(dirname "$0")/_env.sh"
exec $LAUNCH -m distill_utils.evaluate --num_eval 5 --epoch_eval_train 100 --batch_eval 128 --seed 0 "$@"
