# Runs AxVM once for each boot of each scenario; the host reads out/SCENARIO/BOOT/ afterwards.
#   console  what the guest printed      exit     AxVM's exit code       init.ms  from AxVM's start to the guest's init
#   stderr   what AxVM said              ms       from start to end      seen     what the action saw

now() { # milliseconds of the outer machine's life, into $ms
    read -r ms _ </proc/uptime
    ms=${ms%.*}${ms#*.}0
}

# boot DIRECTORY LIMIT MARK ACTION axvm-arguments...: ACTION is run once the console says MARK, with $pid of AxVM, and
# $keyboard to type on. Without an action that types, AxVM's input is at its end from the start.
boot() {
    dir=out/$1 limit=$2 mark=$3 action=$4
    shift 4
    mkdir -p "$dir"
    echo "axvm-lab: note start $dir" >/dev/ttyS0
    input=/dev/null keyboard=/tmp/keyboard
    case "$action" in *'$keyboard'*) rm -f $keyboard; mkfifo $keyboard; exec 9<>$keyboard; input=$keyboard ;; esac
    now; start=$ms
    {
        axvm run "$@" <$input 2>"$dir/stderr" &
        axvm=$!
        echo $axvm >"$dir/pid"
        bound $axvm "$limit" >/dev/null &
        wait $axvm
        echo $? >"$dir/exit"
        kill $! 2>/dev/null
    } | watch
    now; echo $((ms - start)) >"$dir/ms"
    echo "axvm-lab: note end $dir" >/dev/ttyS0
}

# peer CHECKS: QEMU with a guest of its own, the same system, at the other end of two cables. Its disk forgets. It stays
# until it is killed, and not for ever.
peer() {
    local="local.type=inet,local.host=127.0.0.1,local.port=4002"
    remote="remote.type=inet,remote.host=127.0.0.1,remote.port=4001"
    timeout 120 qemu/ld-linux-x86-64.so.2 --library-path qemu qemu/qemu-system-x86_64 -L qemu -M microvm -accel kvm -cpu host \
        -m 256 -nodefaults -no-user-config -display none -serial file:/tmp/peer -pidfile /tmp/peer.pid \
        -kernel bzImage -initrd initrd.img -append "quiet console=ttyS0 axvm.end=hang axvm.check=$1" \
        -drive "id=disk,file=$disk,format=raw,if=none,snapshot=on" -device virtio-blk-device,drive=disk \
        -netdev stream,id=one,server=on,addr.type=unix,addr.path=/tmp/one -netdev "dgram,id=two,$local,$remote" \
        -device virtio-net-device,netdev=one,mac=02:00:00:00:02:01 \
        -device virtio-net-device,netdev=two,mac=02:00:00:00:02:02 </dev/null >/tmp/peer.said 2>&1 &
    tries=0
    until [ -S /tmp/one ] || [ $tries -ge 100 ]; do tries=$((tries + 1)); usleep 100000; done
}

# Kills process $1 after $2 seconds, once it has said what its guest does (out/SCENARIO/BOOT/explain). What even that does not end hangs in the outer machine's kernel: the host is told where.
bound() {
    told=$PWD/$dir/explain
    cd /
    sleep "$2"
    timeout 15 axvm ctl "$1" explain >"$told" 2>&1
    kill -9 "$1"
    sleep 20
    for task in /proc/"$1"/task/*; do
        [ -e "$task/stat" ] || return
        echo "$(cat "$task/comm"): $(grep State "$task/status"): $(tr '\n' ' ' <"$task/stack")" >/dev/ttyS0
    done
    echo "axvm-lab: AxVM cannot be killed" >/dev/ttyS0
}

watch() {
    # What has no end of line at the very end counts, too: a guest that draws a screen sends no other.
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\n' "$line"
        case "$line" in *"axvm: init after"*) [ -e "$dir/init.ms" ] || { now; echo $((ms - start)) >"$dir/init.ms"; } ;; esac
        [ -n "$mark" ] || continue
        case "$line" in *"$mark"*) mark=; read -r pid <"$dir/pid"; eval "$action" >"$dir/seen" 2>&1 ;; esac
    done >"$dir/console"
}
