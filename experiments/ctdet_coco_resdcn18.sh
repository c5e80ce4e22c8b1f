#!/usr/bin/env bash
# COCO detection, ResNet-18. Published AP on val2017: 28.1, with flip test 30.0, with flip and scales 33.2 (4 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --exp_id coco_resdcn18 --arch resdcn_18)
devices 4 --master_batch_size 18
train "${recipe[@]}" --batch_size 114 --lr 5e-4
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
