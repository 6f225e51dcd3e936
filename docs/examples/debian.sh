#!/bin/sh
# Makes a Debian that AxVM can start: its own kernel, its own initrd, and an ext4 disk with systemd.
#
#   sh docs/examples/debian.sh DIRECTORY [RELEASE]       leaves vmlinuz, initrd.img and disk.img there (300 MB)
#
# Needs Debian or Ubuntu with mmdebstrap and fakeroot, no root; about two minutes, most of them downloads.
set -eu
directory=$1 release=${2:-bookworm}
mkdir -p "$directory"
cd "$directory"
# As root it needs no user namespace.
mode=unshare; [ "$(id -u)" = 0 ] && mode=root
mmdebstrap --quiet --mode=$mode --variant=minbase --include=systemd-sysv,udev,dbus,initramfs-tools,linux-image-cloud-amd64 \
    --customize-hook='echo debian >"$1/etc/hostname"' --customize-hook='chroot "$1" passwd --quiet --delete root' \
    "$release" tree.tar
# fakeroot remembers who owns what between tar and mke2fs.
fakeroot sh -c '
    mkdir tree
    tar -xf tree.tar -C tree --exclude="./dev/*"
    cp tree/boot/vmlinuz-* vmlinuz
    cp tree/boot/initrd.img-* initrd.img
    mke2fs -q -F -t ext4 -d tree disk.img 1G
    rm -rf tree tree.tar'
