#!/usr/bin/env bash
# KITTI 3D detection, DLA-34, split subcnn. Published for cars (easy / moderate / hard, 11 points, BEV at overlap 0.5;
# 2 devices): AP 89.6 / 79.8 / 70.3, AOS 85.7 / 75.2 / 65.9, BEV 34.9 / 27.7 / 26.4.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ddd --dataset kitti --kitti_split subcnn --exp_id sub --arch dla_34)
devices 2 --master_batch_size 7
train "${recipe[@]}" --batch_size 16 --num_epochs 70 --lr_step 45,60
evaluate "${recipe[@]}"
