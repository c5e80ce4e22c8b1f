#!/usr/bin/env bash
# COCO poses, DLA-34. Published keypoint AP on val2017 with flip test: 54.7 (8 devices).
# It starts from a detector, models/ctdet_coco_dla_2x.pth.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(multi_pose --dataset coco_hp --exp_id dla_1x --arch dla_34)
devices 8 --master_batch_size 9
train "${recipe[@]}" --batch_size 128 --lr 5e-4 --load_model models/ctdet_coco_dla_2x.pth
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
