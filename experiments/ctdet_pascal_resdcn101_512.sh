#!/usr/bin/env bash
# PASCAL VOC 07+12, ResNet-101 at 512. Published mAP on test 2007 with flip test: 78.7 (4 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --dataset pascal --exp_id pascal_resdcn101_512 --arch resdcn_101 --input_res 512)
devices 4
train "${recipe[@]}" --batch_size 32 --num_epochs 70 --lr_step 45,60
evaluate "${recipe[@]}"
evaluate "${recipe[@]}" --flip_test
