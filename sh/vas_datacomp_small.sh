#!/bin/sh
# VAS on DataComp small, with the paper's fractions: .45 of the pool by CLIP score, .3 of it by VAS.
# METADATA=FOLDER_OR_URL sh sh/vas_datacomp_small.sh [GPU] [more flags, which win]: VAS-D, 168 rounds, S from the pool itself.
# PRIOR=FILE.npy: static VAS instead, by the second moment of a prior set, such as ImageNet's train images:
#     python -m distill_utils.coreset moment --features in1k_clip_vit_l14_*.pt --normalize --out FILE.npy
. "$(dirname "$0")/_env.sh"
METADATA=${METADATA:-distill_utils/data/datacomp_small/metadata}
if [ -n "${PRIOR:-}" ]; then
    SAVE=${SAVE:-logged_files/datacomp_small/vas.npy}
    exec $LAUNCH -m distill_utils.coreset vas --metadata_dir "$METADATA" --save_path "$SAVE" --arch l14 \
        --fraction 0.45 --fraction_vas 0.3 --target_variance "$PRIOR" "$@"
fi
SAVE=${SAVE:-logged_files/datacomp_small/vas_d.npy}
exec $LAUNCH -m distill_utils.coreset vas --metadata_dir "$METADATA" --save_path "$SAVE" --arch l14 \
    --fraction 0.45 --fraction_vas 0.3 --num_iters 168 "$@"
