#!/usr/bin/env bash
# PASCAL VOC 07+12, ResNet-101 at 384. Published mAP on test 2007 with flip test: 77.1 (2 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --dataset pascal --exp_id pascal_resdcn101_384 --arch resdcn_101)
devices 2
train "${recipe[@]}" --batch_size 32 --num_epochs 70 --lr_step 45,60
evaluate "${recipe[@]}"
evaluate "${recipe[@]}" --flip_test
