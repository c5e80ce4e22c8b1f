#!/usr/bin/env bash
# COCO poses, DLA-34, longer. Published keypoint AP on val2017 with flip test: 58.9 (8 devices).
# It starts from a detector, models/ctdet_coco_dla_2x.pth. To continue from multi_pose_dla_1x instead:
# --load_model exp/multi_pose/dla_1x/model_90.pth --resume
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(multi_pose --dataset coco_hp --exp_id dla_3x --arch dla_34)
devices 8 --master_batch_size 9
train "${recipe[@]}" --batch_size 128 --lr 5e-4 --num_epochs 320 --lr_step 270,300 \
    --load_model models/ctdet_coco_dla_2x.pth
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
