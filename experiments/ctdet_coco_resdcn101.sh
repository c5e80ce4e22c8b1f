#!/usr/bin/env bash
# COCO detection, ResNet-101. Published AP on val2017: 34.6, with flip test 36.2, with flip and scales 39.3 (8 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --exp_id coco_resdcn101 --arch resdcn_101)
devices 8 --master_batch_size 5
train "${recipe[@]}" --batch_size 96 --lr 3.75e-4
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
