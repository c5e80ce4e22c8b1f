#!/usr/bin/env bash
# COCO extreme points, hourglass. Published AP on val2017: 35.8, with flip test 39.8, with flip and scales 42.4
# (5 devices).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(exdet --exp_id coco_hg --arch hourglass)
devices 5 --master_batch_size 4
train "${recipe[@]}" --batch_size 24 --lr 2.5e-4
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
