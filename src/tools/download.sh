# Shared by get_pascal_voc.sh and get_kitti.sh, which source it: options, resumable downloads, checksums.
#
# The sourcing script sets, with one entry per file: SUB_PATHS, the paths on a mirror (or directly below its URL),
# ADDRESSES, the official URLs, SUMS, empty if unknown, and BYTES; also SUM_FORM (md5 or sha256) and SUM_LENGTH, PYTHON,
# REPOSITORY and usage(), and before the first download ARCHIVES, the directory of the files, and DATA, the target.

log() { printf '%s\n' "$*"; }
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
            *) usage_error "--mirror '$url' is not a URL that starts with http://, https:// or ftp://" ;;
        esac
    done
}

read_checksums() {
    local file=$1 sum name bytes rest number known
    [ -r "$file" ] && [ ! -d "$file" ] || usage_error "--checksums: cannot read '$file'"
    while read -r sum name bytes rest || [ -n "$sum" ]; do
        case $sum in '' | '#'*) continue ;; esac
        name=${name#\*} # md5sum and sha256sum mark a file read as binary
        [[ $sum =~ ^[0-9a-f]{$SUM_LENGTH}$ && $bytes =~ ^[0-9]*$ && -z $rest ]] ||
            usage_error "--checksums: '$file' has a line that is not '$SUM_FORM  name' or '$SUM_FORM  name  bytes': $sum $name"
        known=no
        for number in "${!SUB_PATHS[@]}"; do
            if [ "${SUB_PATHS[number]##*/}" = "$name" ]; then
                known=yes
                SUMS[number]=$sum
                BYTES[number]=${bytes:-${BYTES[number]}}
            fi
        done
        [ $known = yes ] || usage_error "--checksums: '$file' names '$name', which is not one of the files"
    done <"$file"
}

name_of() { printf '%s' "${SUB_PATHS[$1]##*/}"; } # file number

find_downloader() {
    if command -v curl >/dev/null 2>&1; then
        DOWNLOADER=curl
    elif command -v wget >/dev/null 2>&1; then
        DOWNLOADER=wget
    else
        die "neither curl nor wget was found; install one, or put the files into $ARCHIVES"
    fi
}

size_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

check_disk_space() { # numbers of the archives to unpack
    local number archive size present needed=0 largest=0 free
    for number in "$@"; do
        archive=$ARCHIVES/$(name_of "$number")
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
    free=$("$PYTHON" -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free // 1024)' "$DATA")
    [ "$free" -ge "$needed" ] ||
        die "not enough space in $DATA: $((needed / 1024)) MB needed, $((free / 1024)) MB free; --out sets another directory"
}

# Sets REASON. Returns 0 if the file should be complete, 1 if the transfer was interrupted, 2 if the server lacks it.
transfer() { # address, file
    local status=0 http=''
    local -a options
    if [ $DOWNLOADER = curl ]; then
        options=(--fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 --continue-at - --output "$2")
        if [ -t 2 ]; then options+=(--progress-bar); else options+=(--silent); fi
        http=$(curl "${options[@]}" --write-out '%{http_code}' -- "$1") || status=$?
        case $status:$http in
            0:* | 22:416) return 0 ;; # 416: nothing is left to download
            33:*)                     # the server cannot resume
                rm -f "$2"
                status=0
                http=$(curl "${options[@]}" --write-out '%{http_code}' -- "$1") || status=$?
                [ $status -ne 0 ] || return 0
                ;;
        esac
        case $status in
            5 | 6) REASON="no such host" ;;
            7) REASON="no connection" ;;
            18 | 56) REASON="the transfer was interrupted" ;;
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
        4) REASON="no connection, or the transfer was interrupted" ;;
        8) REASON="not available on the server" ;;
        *) REASON="wget status $status" ;;
    esac
    [ $status -eq 8 ] && return 2
    return 1
}

# Locks a directory until the script and its child processes exit. Others wait.
lock() { # folder
    exec 9>>"$1/.download.lock" || die "cannot write $1/.download.lock"
    "$PYTHON" - "$1" <<'PY' || die "cannot lock $1/.download.lock"
import sys

try:
    import fcntl
except ImportError:  # Windows
    sys.exit()
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"Another process is writing to {sys.argv[1]}: waiting for it", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    print(f"note: the file system of {sys.argv[1]} has no locks; run this on one machine at a time")
PY
}

# Retries until the file is complete, as long as each attempt makes progress. Returns like transfer.
transfer_all() { # address, file
    local before status
    while :; do
        before=$(size_of "$2")
        status=0
        transfer "$1" "$2" || status=$?
        [ $status -eq 1 ] && [ "$(size_of "$2")" -gt "$before" ] || return $status
        log "  $REASON after $(size_of "$2") bytes; continuing"
        sleep 1
    done
}

# Prints the fault of a file: a wrong checksum, or without a known checksum, content that cannot be read completely.
fault_of() { # file, name, sum
    "$PYTHON" - "$@" <<'PY'
import hashlib, sys, tarfile, zipfile, zlib

path, name, expected = sys.argv[1:]
if expected:
    kind = {32: "MD5", 64: "SHA-256"}[len(expected)]
    digest = hashlib.md5(usedforsecurity=False) if kind == "MD5" else hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        print(f"{kind} sum {digest.hexdigest()} instead of {expected}")
    sys.exit()
try:
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            print(f"damaged at {damaged!r}")
    elif name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            archive.getmembers()
    else:
        [int(line) for line in open(path, encoding="ascii")]
except (zipfile.BadZipFile, tarfile.TarError, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
    print(f"not a complete {name} ({' '.join(str(error).split())})")
PY
}

# Renames the finished file if it is valid, else removes it and sets REASON.
accept() { # file, final name, file number
    local fault
    fault=$(fault_of "$1" "$(name_of "$3")" "${SUMS[$3]}") || die "cannot read $1"
    if [ -z "$fault" ]; then
        [ "$1" = "$2" ] || mv -f "$1" "$2" || die "cannot write $2"
        return 0
    fi
    rm -f "$1"
    REASON="$fault, file removed"
    return 1
}

# Puts the file into ARCHIVES. Returns 1 with TRIED set if no URL provides it.
fetch() { # file number
    local name base url status begun
    name=$(name_of "$1")
    local archive=$ARCHIVES/$name
    TRIED=''
    if [ -f "$archive" ]; then
        log "$archive exists: checking it"
        accept "$archive" "$archive" "$1" && return 0
        log "  $REASON"
    fi
    find_downloader
    for base in ${MIRRORS[@]+"${MIRRORS[@]}"} ''; do
        for url in "${base:+$base/${SUB_PATHS[$1]}}" "${base:+$base/$name}"; do
            url=${url:-${ADDRESSES[$1]}}
            while :; do
                begun=$(size_of "$archive.part")
                if [ "$begun" -gt 0 ]; then log "Downloading $url (from byte $begun)"; else log "Downloading $url"; fi
                status=0
                transfer_all "$url" "$archive.part" || status=$?
                [ $status -eq 0 ] || break
                accept "$archive.part" "$archive" "$1" && return 0
                # The earlier part may be corrupt, perhaps from another mirror: retry from the start.
                [ "$begun" -gt 0 ] || break
                log "  $REASON"
            done
            log "  $REASON"
            TRIED="$TRIED${TRIED:+; }$url: $REASON"
            # Only a mirror that responds may have the file under another path.
            [ $status -eq 2 ] && [ -n "$base" ] && [ "$name" != "${SUB_PATHS[$1]}" ] || break
        done
    done
    return 1
}
