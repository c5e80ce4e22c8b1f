#!/usr/bin/env bash
# KITTI 3D detection, DLA-34, split 3dop. Published for cars (easy / moderate / hard, 11 points, BEV at overlap 0.5;
# 2 devices): AP 96.9 / 87.8 / 79.2, AOS 93.9 / 84.3 / 75.7, BEV 34.0 / 30.5 / 26.8.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ddd --dataset kitti --kitti_split 3dop --exp_id 3dop --arch dla_34)
devices 2 --master_batch_size 7
train "${recipe[@]}" --batch_size 16 --num_epochs 70 --lr_step 45,60
evaluate "${recipe[@]}"
