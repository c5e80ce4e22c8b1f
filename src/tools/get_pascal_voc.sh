#!/usr/bin/env bash
# Download, check, unpack and convert PASCAL VOC 2007 and 2012. See --help.
set -euo pipefail
unset CDPATH # with it, cd prints

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
DEFAULT_HOST=http://host.robots.ox.ac.uk/pascal/VOC
PYTHON=${PYTHON:-python3}

# One row an archive, in parallel arrays because the shell of macOS (3.2) has no others.
SUB_PATHS=(voc2007/VOCtrainval_06-Nov-2007.tar voc2007/VOCtest_06-Nov-2007.tar voc2012/VOCtrainval_11-May-2012.tar)
SUMS=(c52e279531787c972589f7e41ab4ae64 b6e924de25625d8de591ea690078ad9f 6cd6e144f989b92b3379bac3b3de84fd)
BYTES=(460032000 451020800 1999639040)
FOLDERS=(VOC2007 VOC2007 VOC2012)
IMAGE_SETS=("train val" "test" "train val")

usage() {
    cat <<END
Usage: get_pascal_voc.sh [--out DIR] [--mirror URL]... [--keep] [--checksums FILE]

Fills DIR/voc with annotations/, images/ and VOCdevkit/ from the three archives of PASCAL VOC: 2007 trainval, 2007 test
and 2012 trainval (2.9 GB; 5 GB on the disk while it works, 6 GB with --keep). After an interruption, run it again: it
goes on where it stopped, and does nothing when all is done.

  --out DIR         data folder; without it the repository's: $REPOSITORY/data
  --mirror URL      a place to try before $DEFAULT_HOST; several times, or several
                    with commas. It has the archives under voc2007/ and voc2012/, or all directly under URL
  --keep            keep the archives in DIR/voc/archives instead of removing each once it is unpacked
  --checksums FILE  other MD5 sums than the official ones, for a mirror with repacked archives: lines
                    "md5  name" or "md5  name  bytes", for one archive or more (bytes: for the disk space check)
  --help            this text

An archive that already lies in DIR/voc/archives is used instead of a download if its MD5 sum is right, and removed
if it is not. Needs curl or wget, and Python 3.10 or later as python3 (or as the environment variable PYTHON says).
END
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
usage_error() {
    printf 'error: %s (--help lists the options)\n' "$*" >&2
    exit 2
}

parse_options() {
    OUT=$REPOSITORY/data
    KEEP=no
    MIRRORS=()
    local option value
    while [ $# -gt 0 ]; do
        option=$1
        shift
        case $option in
            --help | -h)
                usage
                exit 0
                ;;
            --keep)
                KEEP=yes
                continue
                ;;
            --out=* | --mirror=* | --checksums=*)
                value=${option#*=}
                option=${option%%=*}
                ;;
            --out | --mirror | --checksums)
                [ $# -gt 0 ] || usage_error "$option needs a value"
                value=$1
                shift
                ;;
            *) usage_error "unknown option '$option'" ;;
        esac
        [ -n "$value" ] || usage_error "$option needs a value"
        case $option in
            --out) OUT=$value ;;
            --mirror) add_mirrors "$value" ;;
            --checksums) read_checksums "$value" ;;
        esac
    done
}

add_mirrors() {
    local url
    local -a urls
    IFS=, read -r -a urls <<<"$1"
    for url in "${urls[@]}"; do
        case $url in
            http://?* | https://?* | ftp://?*) MIRRORS+=("${url%/}") ;;
            *) usage_error "--mirror '$url' is not an address that starts with http://, https:// or ftp://" ;;
        esac
    done
}

read_checksums() {
    local file=$1 sum name bytes rest number known
    [ -r "$file" ] && [ ! -d "$file" ] || usage_error "--checksums: cannot read '$file'"
    while read -r sum name bytes rest || [ -n "$sum" ]; do
        case $sum in '' | '#'*) continue ;; esac
        name=${name#\*} # md5sum marks a file read as binary
        [[ $sum =~ ^[0-9a-f]{32}$ && $bytes =~ ^[0-9]*$ && -z $rest ]] ||
            usage_error "--checksums: '$file' has a line that is not 'md5  name' or 'md5  name  bytes': $sum $name"
        known=no
        for number in "${!SUB_PATHS[@]}"; do
            if [ "${SUB_PATHS[number]##*/}" = "$name" ]; then
                known=yes
                SUMS[number]=$sum
                BYTES[number]=${bytes:-${BYTES[number]}}
            fi
        done
        [ $known = yes ] || usage_error "--checksums: '$file' names '$name', which is not one of the archives"
    done <"$file"
}

marker_of() { # archive number
    local name=${SUB_PATHS[$1]##*/}
    printf '%s' "$VOC/VOCdevkit/${FOLDERS[$1]}/.unpacked_${name%.tar}"
}

is_unpacked() { # archive number
    local marker
    marker=$(marker_of "$1")
    [ -f "$marker" ] && [ "$(cat "$marker")" = "${SUMS[$1]}" ]
}

check_tools() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "'$PYTHON' is not there; install Python 3.10 or later, or name it with the environment variable PYTHON"
    "$PYTHON" -c 'import sys, tarfile; sys.exit(sys.version_info < (3, 10) or not hasattr(tarfile, "data_filter"))' ||
        die "'$PYTHON' cannot unpack archives safely; it takes Python 3.12, or a current release of 3.10 or 3.11"
}

find_downloader() {
    if command -v curl >/dev/null 2>&1; then
        DOWNLOADER=curl
    elif command -v wget >/dev/null 2>&1; then
        DOWNLOADER=wget
    else
        die "neither curl nor wget is there to download with; install one, or put the archives into $ARCHIVES"
    fi
}

size_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

check_disk_space() { # numbers of the archives that are still to be unpacked
    local number archive size present needed=0 largest=0 free
    for number in "$@"; do
        archive=$ARCHIVES/${SUB_PATHS[number]##*/}
        size=${BYTES[number]}
        present=$(($(size_of "$archive") + $(size_of "$archive.part")))
        needed=$((needed + size)) # unpacked
        size=$((size > present ? size - present : 0))
        if [ $KEEP = yes ]; then
            needed=$((needed + size))
        elif [ $size -gt $largest ]; then
            largest=$size
        fi
    done
    needed=$(((needed + largest) / 1024))
    free=$("$PYTHON" -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free // 1024)' "$VOC")
    [ "$free" -ge "$needed" ] ||
        die "not enough space in $VOC: $((needed / 1024)) MB needed, $((free / 1024)) MB free; --out names another place"
}

# Sets REASON. Returns 0 when the file should be whole, 1 when the transfer broke off, 2 when the server does not give it.
transfer() { # address, file
    local status=0 http=''
    local -a options
    if [ $DOWNLOADER = curl ]; then
        options=(--fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 --continue-at - --output "$2")
        if [ -t 2 ]; then options+=(--progress-bar); else options+=(--silent); fi
        http=$(curl "${options[@]}" --write-out '%{http_code}' -- "$1") || status=$?
        case $status:$http in
            0:* | 22:416) return 0 ;; # 416: the server has nothing after what is here already
            33:*)                     # the server cannot continue a file
                rm -f "$2"
                status=0
                http=$(curl "${options[@]}" --write-out '%{http_code}' -- "$1") || status=$?
                [ $status -ne 0 ] || return 0
                ;;
        esac
        case $status in
            6) REASON="no such host" ;;
            7) REASON="no connection" ;;
            18 | 56) REASON="the transfer broke off" ;;
            22) REASON="HTTP status $http" ;;
            23) die "cannot write $2" ;;
            28) REASON="no answer in time" ;;
            *) REASON="curl status $status" ;;
        esac
        [ $status -eq 22 ] && return 2
        return 1
    fi
    options=(--continue --tries=1 --timeout=60 --output-document="$2" --quiet)
    if [ -t 2 ]; then options+=(--show-progress); fi
    wget "${options[@]}" -- "$1" || status=$?
    case $status in
        0) return 0 ;;
        3) die "cannot write $2" ;;
        4) REASON="no connection, or the transfer broke off" ;;
        8) REASON="the server does not give it" ;;
        *) REASON="wget status $status" ;;
    esac
    [ $status -eq 8 ] && return 2
    return 1
}

# Transfers until the file is whole, as long as each try brings something. Returns as transfer does.
transfer_all() { # address, file
    local before status
    while :; do
        before=$(size_of "$2")
        status=0
        transfer "$1" "$2" || status=$?
        [ $status -eq 1 ] && [ "$(size_of "$2")" -gt "$before" ] || return $status
        say "  $REASON after $(size_of "$2") bytes; going on"
        sleep 1
    done
}

md5_of() { # file
    "$PYTHON" - "$1" <<'PY'
import hashlib, sys

digest = hashlib.md5(usedforsecurity=False)
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())
PY
}

# Renames the finished file when its sum is right, else removes it and sets REASON.
accept() { # file, final name, sum
    local sum
    sum=$(md5_of "$1") || die "cannot read $1"
    if [ "$sum" = "$3" ]; then
        [ "$1" = "$2" ] || mv -f "$1" "$2" || die "cannot write $2"
        return 0
    fi
    rm -f "$1"
    REASON="MD5 sum $sum instead of $3, file removed"
    return 1
}

fetch() { # archive number
    local sub_path=${SUB_PATHS[$1]} sum=${SUMS[$1]} base url status begun tried=''
    local name=${sub_path##*/}
    local archive=$ARCHIVES/$name
    if [ -f "$archive" ]; then
        say "$archive is there: checking it"
        accept "$archive" "$archive" "$sum" && return 0
        say "  $REASON"
    fi
    find_downloader
    for base in ${MIRRORS[@]+"${MIRRORS[@]}"} "$DEFAULT_HOST"; do
        for url in "$base/$sub_path" "$base/$name"; do
            while :; do
                begun=$(size_of "$archive.part")
                if [ "$begun" -gt 0 ]; then say "Downloading $url (from byte $begun)"; else say "Downloading $url"; fi
                status=0
                transfer_all "$url" "$archive.part" || status=$?
                [ $status -eq 0 ] || break
                accept "$archive.part" "$archive" "$sum" && return 0
                # The fault may lie in what was there before, perhaps from another place: once more, from the start.
                [ "$begun" -gt 0 ] || break
                say "  $REASON"
            done
            say "  $REASON"
            tried="$tried${tried:+; }$url: $REASON"
            # Only a server that answers may have the file in another folder, and the default host is known.
            [ $status -eq 2 ] && [ "$base" != "$DEFAULT_HOST" ] || break
        done
    done
    die "could not download $name ($tried); run again to go on, or name another place with --mirror"
}

unpack() { # archive number
    local archive=$ARCHIVES/${SUB_PATHS[$1]##*/} set marker
    say "Unpacking $archive"
    "$PYTHON" - "$archive" "$VOC" <<'PY' || exit 1
import os, sys, tarfile

archive, folder = sys.argv[1:]
try:
    with tarfile.open(archive) as tar:
        # All members before the first is written: an archive that is not what it should be leaves nothing behind.
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
        [ -f "$VOC/VOCdevkit/${FOLDERS[$1]}/ImageSets/Main/$set.txt" ] ||
            die "$archive: did not hold VOCdevkit/${FOLDERS[$1]}/ImageSets/Main/$set.txt"
    done
    marker=$(marker_of "$1")
    printf '%s\n' "${SUMS[$1]}" >"$marker" || die "cannot write $marker"
    [ $KEEP = yes ] || rm -f "$archive"
}

convert() {
    local marker=$VOC/annotations/.converted file finished=no
    if [ -d "$VOC/images" ] && [ -f "$marker" ] && [ "$(cat "$marker")" = "${SUMS[*]}" ]; then
        finished=yes
        for file in {train,val}{2007,2012} trainval0712 test2007; do
            [ -f "$VOC/annotations/pascal_$file.json" ] || finished=no
        done
    fi
    [ $finished = no ] || return 0
    say "Converting $VOC/VOCdevkit"
    "$PYTHON" "$HERE/convert_voc.py" "$VOC/VOCdevkit" --annotations "$VOC/annotations" --images "$VOC/images" || exit 1
    printf '%s\n' "${SUMS[*]}" >"$marker" || die "cannot write $marker"
}

report() {
    "$PYTHON" - "$VOC/annotations" <<'PY' || die "the files in $VOC/annotations cannot be read; remove them and run again"
import json, sys

for name, full in (("trainval0712", 16551), ("test2007", 4952)):
    with open(f"{sys.argv[1]}/pascal_{name}.json") as file:
        number = len(json.load(file)["images"])
    print(f"{name}: {number} pictures" + ("" if number == full else f" (the full set has {full})"))
PY
    say "The data is in $VOC. Next:"
    printf '    bash train_full_4p.sh --data_path=%q\n' "$OUT"
}

main() {
    local number
    local -a pending=()
    parse_options "$@"
    mkdir -p -- "$OUT/voc" 2>/dev/null || die "cannot make the folder $OUT/voc"
    OUT=$(cd -- "$OUT" && pwd)
    VOC=$OUT/voc
    ARCHIVES=$VOC/archives
    check_tools
    for number in "${!SUB_PATHS[@]}"; do
        is_unpacked "$number" || pending+=("$number")
    done
    if [ ${#pending[@]} -gt 0 ]; then
        mkdir -p "$ARCHIVES" 2>/dev/null || die "cannot make the folder $ARCHIVES"
        check_disk_space "${pending[@]}"
        for number in "${pending[@]}"; do
            fetch "$number"
            unpack "$number"
        done
        rmdir "$ARCHIVES" 2>/dev/null || true # stays when something is kept in it
    fi
    convert
    report
}

main "$@"
