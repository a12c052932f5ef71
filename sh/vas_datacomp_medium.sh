#!/bin/sh
# VAS on DataComp medium, with the paper's fractions: .3 of the pool by CLIP score, .2 of it by VAS.
# METADATA=FOLDER_OR_URL sh sh/vas_datacomp_medium.sh [GPU] [more flags, which win]: VAS-D, 500 rounds, S from the pool itself.
# PRIOR=FILE.npy: static VAS instead, by the second moment of a prior set, such as ImageNet's train images:
#     python -m distill_utils.coreset moment --features in1k_clip_vit_l14_*.pt --normalize --out FILE.npy
. "$(dirname "$0")/_env.sh"
METADATA=${METADATA:-distill_utils/data/datacomp_medium/metadata}
if [ -n "${PRIOR:-}" ]; then
    SAVE=${SAVE:-logged_files/datacomp_medium/vas.npy}
    exec $LAUNCH -m distill_utils.coreset vas --metadata_dir "$METADATA" --save_path "$SAVE" --arch l14 \
        --fraction 0.3 --fraction_vas 0.2 --target_variance "$PRIOR" "$@"
fi
SAVE=${SAVE:-logged_files/datacomp_medium/vas_d.npy}
exec $LAUNCH -m distill_utils.coreset vas --metadata_dir "$METADATA" --save_path "$SAVE" --arch l14 \
    --fraction 0.3 --fraction_vas 0.2 --num_iters 500 "$@"
