//! What kernel and initrd lack for the machine, told while it runs: the program, with the sandbox closed.
//!
//! ```text
//!   guest.elf, "Linux version", a configuration behind its last segment --> axvm run --lint on --> one line for each lack
//! ```
//!
//! The rules have tests of their own in `axvm_inspect`.

use std::fs;

use axvm_cpio::Cpio;

use crate::common::{Place, has_kvm, until};

/// A configuration that has all but a driver for disks, which is a module, and an option.
const CONFIG: &str = "CONFIG_X86_64=y\nCONFIG_SERIAL_8250=y\nCONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_ACPI=y\nCONFIG_SMP=y\n\
    CONFIG_KVM_GUEST=y\nCONFIG_DEVTMPFS=y\nCONFIG_DEVTMPFS_MOUNT=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_VIRTIO_MMIO=y\n\
    CONFIG_EXT4_FS=y\nCONFIG_NR_CPUS=8\nCONFIG_VIRTIO_BLK=m\n";

/// What is said of a disk without a driver.
const LACK: &str = "axvm: guest: root=/dev/vda will wait for ever: virtio_blk is a module in this kernel and the initrd has \
                    no virtio_blk.ko; add it, or use a kernel with CONFIG_VIRTIO_BLK=y (from ";

/// A place with the guest under the name of a Linux, its configuration, and an initrd that has these modules.
fn place(modules: &[&str]) -> Place {
    let place = Place::new();
    let kernel = [axvm_guest::selftest(), b"\0Linux version 9.9.9 (it is not)\0"].concat();
    fs::write(place.path("vmlinux-9.9.9"), kernel).unwrap();
    fs::write(place.path("config-9.9.9"), CONFIG).unwrap();
    let mut initrd = Cpio::default();
    modules.iter().for_each(|module| initrd.file(&format!("lib/modules/{module}.ko"), 0o644, b"a module"));
    fs::write(place.path("initrd.img"), initrd.finish()).unwrap();
    place
}

/// Runs until `told` is among what AxVM says, then to its end: all that it said.
fn run(place: &Place, kernel: &str, words: &str, told: &str) -> String {
    let words = format!(
        "run --kernel {kernel} --initrd initrd.img --disk disk.img --memory 32M --cpus 1 --api-sock api -v {words} --append \
         shell"
    );
    let (axvm, talk) = place.talking(place.axvm(&words));
    until(told, || axvm.errors().contains(told));
    until("its thread has ended", || !axvm.cpu_time().iter().any(|(thread, _)| thread == "lint"));
    assert_eq!(place.run("ctl ./api stop").0, 0);
    let end = axvm.ends_with(0);
    drop(talk);
    end.errors
}

#[test]
fn what_the_guest_lacks_is_told_while_it_runs() {
    if !has_kvm() {
        return;
    }
    let lacking = place(&["other"]);
    let errors = run(&lacking, "vmlinux-9.9.9", "--lint on", "lint: 1 finding");
    assert!(errors.contains(LACK) && errors.contains("config-9.9.9"), "{errors}");
    // The same without a machine.
    let look = "inspect --kernel vmlinux-9.9.9 --initrd initrd.img --disk disk.img --memory 32M --only lacks";
    let (code, shown, _) = lacking.run(look);
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(code == 0 && words.contains("(from config-9.9.9). virtio-blk root=/dev/vda will wait"), "{shown}");
    let whole = place(&["virtio_blk"]);
    assert!(whole.run(look).1.contains("nothing that AxVM knows of"));
    let errors = run(&whole, "vmlinux-9.9.9", "--lint on", "lint: 0 findings, from config-9.9.9");
    assert!(!errors.contains("guest:"), "{errors}");
}

#[test]
fn a_kernel_without_a_configuration_is_opened_in_the_sandbox() {
    if !has_kvm() {
        return;
    }
    let place = place(&["virtio_mmio"]);
    fs::rename(place.path("vmlinux-9.9.9"), place.path("kernel")).unwrap();
    let errors = run(&place, "kernel", "--lint on", "findings, from the names in the kernel image");
    let lack = "root=/dev/vda will wait for ever: virtio_blk is not built into this kernel and the initrd has no virtio_blk.ko";
    assert!(errors.contains(lack), "{errors}");
    let errors = run(&place, "guest.elf", "--lint on", "lint: 0 findings, from nothing: this is no Linux");
    assert!(!errors.contains("guest:"), "{errors}");
}

#[test]
fn without_a_terminal_or_when_told_not_to_no_thread_looks() {
    if !has_kvm() {
        return;
    }
    let place = place(&["other"]);
    for words in ["", "--lint off"] {
        let errors = run(&place, "vmlinux-9.9.9", words, "vcpus");
        assert!(!errors.contains("lint:") && !errors.contains("guest:"), "{words}: {errors}");
    }
}
