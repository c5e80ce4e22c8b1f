#!/usr/bin/env bash
# Download, check, unpack and convert PASCAL VOC 2007 and 2012. See --help.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
set -euo pipefail
unset CDPATH # with it, cd prints

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
DEFAULT_HOST=http://host.robots.ox.ac.uk/pascal/VOC
PYTHON=${PYTHON:-python3}

# One row per archive, in parallel arrays because the Bash of macOS (3.2) has no associative arrays.
SUB_PATHS=(voc2007/VOCtrainval_06-Nov-2007.tar voc2007/VOCtest_06-Nov-2007.tar voc2012/VOCtrainval_11-May-2012.tar)
SUMS=(c52e279531787c972589f7e41ab4ae64 b6e924de25625d8de591ea690078ad9f 6cd6e144f989b92b3379bac3b3de84fd)
BYTES=(460032000 451020800 1999639040)
ADDRESSES=()
for path in "${SUB_PATHS[@]}"; do ADDRESSES+=("$DEFAULT_HOST/$path"); done
SUM_FORM=md5 SUM_LENGTH=32
FOLDERS=(VOC2007 VOC2007 VOC2012)
IMAGE_SETS=("train val" "test" "train val")

usage() {
    cat <<END
Usage: get_pascal_voc.sh [--out DIR] [--mirror URL]... [--keep] [--checksums FILE]

Fills DIR/voc with annotations/, images/ and VOCdevkit/ from the three archives of PASCAL VOC: 2007 trainval, 2007 test
and 2012 trainval (2.9 GB; 5 GB of disk space while it runs, 6 GB with --keep). After an interruption, run it again: it
continues where it stopped, and does nothing if everything is complete.

  --out DIR         data directory; default: $REPOSITORY/data
  --mirror URL      a URL to try before $DEFAULT_HOST; repeatable, or comma-
                    separated. It has the archives in voc2007/ and voc2012/, or all directly below URL
  --keep            keep the archives in DIR/voc/archives instead of removing each after unpacking
  --checksums FILE  MD5 checksums of a mirror with repacked archives: lines
                    "md5  name" or "md5  name  bytes", for one or more archives (bytes: for the disk space check)
  --help            print this text

An archive that exists in DIR/voc/archives is used instead of a download if its MD5 checksum is correct, and removed
otherwise. Needs curl or wget, and Python 3.10 or later as python3 (or the environment variable PYTHON).
END
}

# shellcheck source=src/tools/download.sh
. "$HERE/download.sh"

marker_of() { # archive number
    local name=${SUB_PATHS[$1]##*/}
    printf '%s' "$DATA/VOCdevkit/${FOLDERS[$1]}/.unpacked_${name%.tar}"
}

is_unpacked() { # archive number
    local marker
    marker=$(marker_of "$1")
    [ -f "$marker" ] && [ "$(cat "$marker")" = "${SUMS[$1]}" ]
}

check_tools() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "'$PYTHON' was not found; install Python 3.10 or later, or set the environment variable PYTHON"
    "$PYTHON" -c 'import sys, tarfile; sys.exit(sys.version_info < (3, 10) or not hasattr(tarfile, "data_filter"))' ||
        die "'$PYTHON' cannot unpack archives safely; Python 3.12, or a current release of 3.10 or 3.11"
}

unpack() { # archive number
    local archive=$ARCHIVES/${SUB_PATHS[$1]##*/} set marker
    log "Unpacking $archive"
    "$PYTHON" - "$archive" "$DATA" <<'PY' || exit 1
import os, sys, tarfile

archive, folder = sys.argv[1:]
try:
    with tarfile.open(archive) as tar:
        # All members before the first is written: an invalid archive leaves no files behind.
        for member in tar:
            tarfile.data_filter(member, folder)
            if os.path.normpath(member.name).split(os.sep)[0] not in ("VOCdevkit", "."):
                sys.exit(f"error: {archive}: refused to unpack {member.name!r}, which is not inside VOCdevkit")
        tar.extractall(folder, filter="data")
except tarfile.FilterError as error:
    sys.exit(f"error: {archive}: refused to unpack it: {error}")
except (tarfile.TarError, OSError, EOFError) as error:
    sys.exit(f"error: {archive}: cannot be unpacked into {folder}: {' '.join(str(error).split())}")
PY
    for set in ${IMAGE_SETS[$1]}; do
        [ -f "$DATA/VOCdevkit/${FOLDERS[$1]}/ImageSets/Main/$set.txt" ] ||
            die "$archive: does not contain VOCdevkit/${FOLDERS[$1]}/ImageSets/Main/$set.txt"
    done
    marker=$(marker_of "$1")
    printf '%s\n' "${SUMS[$1]}" >"$marker" || die "cannot write $marker"
    [ $KEEP = yes ] || rm -f "$archive"
}

convert() {
    local marker=$DATA/annotations/.converted file finished=no
    if [ -d "$DATA/images" ] && [ -f "$marker" ] && [ "$(cat "$marker")" = "${SUMS[*]}" ]; then
        finished=yes
        for file in {train,val}{2007,2012} trainval0712 test2007; do
            [ -f "$DATA/annotations/pascal_$file.json" ] || finished=no
        done
    fi
    [ $finished = no ] || return 0
    log "Converting $DATA/VOCdevkit"
    "$PYTHON" "$HERE/convert_voc.py" "$DATA/VOCdevkit" --annotations "$DATA/annotations" --images "$DATA/images" || exit 1
    printf '%s\n' "${SUMS[*]}" >"$marker" || die "cannot write $marker"
}

report() {
    "$PYTHON" - "$DATA/annotations" <<'PY' || die "the files in $DATA/annotations cannot be read; remove them and run again"
import json, sys

for name, full in (("trainval0712", 16551), ("test2007", 4952)):
    with open(f"{sys.argv[1]}/pascal_{name}.json") as file:
        number = len(json.load(file)["images"])
    print(f"{name}: {number} images" + ("" if number == full else f" (the full set has {full})"))
PY
    log "The data is in $DATA. Next:"
    printf '    bash train_full_4p.sh --data_path=%q\n' "$OUT"
}

main() {
    local number
    local -a pending=()
    parse_options "$@"
    mkdir -p -- "$OUT/voc" 2>/dev/null || die "cannot make the folder $OUT/voc"
    OUT=$(cd -- "$OUT" && pwd)
    DATA=$OUT/voc
    ARCHIVES=$DATA/archives
    check_tools
    lock "$DATA"
    for number in "${!SUB_PATHS[@]}"; do
        is_unpacked "$number" || pending+=("$number")
    done
    if [ ${#pending[@]} -gt 0 ]; then
        mkdir -p "$ARCHIVES" 2>/dev/null || die "cannot make the folder $ARCHIVES"
        check_disk_space "${pending[@]}"
        for number in "${pending[@]}"; do
            fetch "$number" ||
                die "could not download $(name_of "$number") ($TRIED); run again to continue, or give another URL with --mirror"
            unpack "$number"
        done
        rmdir "$ARCHIVES" 2>/dev/null || true # kept if it is not empty
    fi
    convert
    report
}

main "$@"
