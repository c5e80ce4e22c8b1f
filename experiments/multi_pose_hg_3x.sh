#!/usr/bin/env bash
# COCO poses, hourglass, longer. Published keypoint AP on val2017 with flip test: 64.0 (5 devices).
# It starts from a detector, models/ctdet_coco_hg.pth. To continue from multi_pose_hg_1x instead:
# --load_model exp/multi_pose/hg_1x/model_40.pth --resume
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(multi_pose --dataset coco_hp --exp_id hg_3x --arch hourglass)
devices 5 --master_batch_size 4
train "${recipe[@]}" --batch_size 24 --lr 2.5e-4 --num_epochs 150 --lr_step 130 \
    --load_model models/ctdet_coco_hg.pth
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
