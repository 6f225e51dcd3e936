//! Keys that people bring from other programs to a settings file: which of AxVM's is meant.
//!
//! ```text
//!   [[disk]]
//!   readonly = true   --> unknown key 'readonly' in [[disk]]; ro = true is what attaches an image read-only
//! ```
//!
//! They are looked for where AxVM has no such key. Words of the command line: `cli::habits`.

const RO: &str = "ro = true is what attaches an image read-only";
const PATH: &str = "path = \"FILE\" is what names the image";
const EPHEMERAL: &str = "ephemeral = true is what keeps the image as it is";
const BLOCK: &str = "block = 512 or 4096 is what sets the block size";
const ON_FULL: &str = "on-full = \"pause\" or \"report\" is what there is for a host without room";
const ENGINE: &str = "engine = \"sync\" or \"io_uring\" is what there is";
const CACHE: &str = "cache = \"writeback\" or \"writethrough\" is what there is";
const RATE: &str = "rate = \"10M/s:1000ops/s\" is what limits bytes and operations";
const A_DISK: &str = "a disk is a table [[disk]] with path = \"FILE\"";
const A_CARD: &str = "a network card is a table [[net]] with user = true, or tap = \"NAME\"";
const TAP: &str = "tap = \"NAME\" is what names a tap device";
const FORWARD: &str = "forward = [\"2222:22\"] is what leads from ports of the host to the guest";
const CPUS_TABLE: &str = "vCPUs are count = N in [cpus]";
const MEMORY_TABLE: &str = "guest RAM is size = \"SIZE\" in [memory]";

/// Keys of a settings file: where they stand ("" for the file itself), what they are, what is meant.
const KEYS: &[(&str, &str, &str)] = &[
    ("[[disk]]", "readonly", RO),
    ("[[disk]]", "read-only", RO),
    ("[[disk]]", "read_only", RO),
    ("[[disk]]", "is_read_only", RO),
    ("[[disk]]", "writable", RO),
    ("[[disk]]", "file", PATH),
    ("[[disk]]", "filename", PATH),
    ("[[disk]]", "image", PATH),
    ("[[disk]]", "path_on_host", PATH),
    ("[[disk]]", "snapshot", EPHEMERAL),
    ("[[disk]]", "temporary", EPHEMERAL),
    ("[[disk]]", "block_size", BLOCK),
    ("[[disk]]", "block-size", BLOCK),
    ("[[disk]]", "logical_block_size", BLOCK),
    ("[[disk]]", "werror", ON_FULL),
    ("[[disk]]", "on_full", ON_FULL),
    ("[[disk]]", "rate_limiter", RATE),
    ("[[disk]]", "rate_limiter_config", RATE),
    ("[[disk]]", "iops", RATE),
    ("[[disk]]", "cache_type", CACHE),
    ("[[disk]]", "io_engine", ENGINE),
    ("[[disk]]", "aio", ENGINE),
    ("[[disk]]", "id", "serial = \"TEXT\" is what the guest reads; the first disk is vda, the next vdb"),
    ("[[disk]]", "drive_id", "serial = \"TEXT\" is what the guest reads; the first disk is vda, the next vdb"),
    ("", "drive", A_DISK),
    ("", "drives", A_DISK),
    ("", "disks", A_DISK),
    ("", "rootfs", A_DISK),
    ("[[net]]", "ifname", TAP),
    ("[[net]]", "host_dev_name", TAP),
    ("[[net]]", "hostfwd", FORWARD),
    ("[[net]]", "ports", FORWARD),
    ("[[net]]", "guest_mac", "mac = \"ADDRESS\" is the card's address"),
    ("[[net]]", "num_queues", "queues = N is the number of queue pairs"),
    ("", "network", A_CARD),
    ("", "networks", A_CARD),
    ("", "nic", A_CARD),
    ("", "netdev", A_CARD),
    ("", "network-interfaces", A_CARD),
    ("", "vcpus", CPUS_TABLE),
    ("", "smp", CPUS_TABLE),
    ("", "mem", MEMORY_TABLE),
    ("", "ram", MEMORY_TABLE),
    ("", "cmdline", "words for the kernel are append = \"TEXT\""),
    ("", "initramfs", "an initial RAM disk is initrd = \"FILE\""),
    ("[vsock]", "guest_cid", "cid = N is the guest's address"),
    ("[vsock]", "guest-cid", "cid = N is the guest's address"),
    ("[vsock]", "uds_path", "socket = \"FILE\" is its end on the host"),
    ("[vsock]", "path", "socket = \"FILE\" is its end on the host"),
    ("[cpus]", "vcpus", "count = N is their number"),
    ("[cpus]", "boot_vcpus", "count = N is their number"),
    ("[memory]", "mem", "size = \"SIZE\" is what there is"),
];

/// What is meant by key `name` of a settings file, which is not one of AxVM's; `place` is the table that it is in.
pub(super) fn meant(place: &str, name: &str) -> Option<&'static str> {
    KEYS.iter().find(|(table, key, _)| *table == place && *key == name).map(|(_, _, meant)| *meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_told_where_the_key_stands() {
        for (text, line, words) in [
            ("[[disk]]\npath = 'a'\nreadonly = true", 3, "'readonly' in [[disk]]; ro = true is what attaches"),
            ("[[disk]]\nfile = 'a'", 2, "'file' in [[disk]]; path = \"FILE\" is what names the image"),
            ("[[net]]\nifname = 'tap0'", 2, "'ifname' in [[net]]; tap = \"NAME\" is what names"),
            ("[[nic]]\nuser = true", 1, "'nic'; a network card is a table [[net]]"),
            ("net = 'user'", 1, "expected tables: [[net]] with user = true"),
            ("disk = 'a'", 1, "expected tables: [[disk]] with path = \"FILE\""),
            ("[[net]]\nmtu = 1500", 1, "[[net]]: what the card is connected to is missing"),
            ("[[net]]\nuser = true\nforward = ['22']", 3, "'22' is no forward"),
            ("[[drive]]\npath = 'a'", 1, "'drive'; a disk is a table [[disk]] with path"),
            ("[[disk]]\npath = 'a'\ncache = 'none'", 3, "unknown variant 'none', expected 'writeback'"),
        ] {
            let fault = super::super::parse(text).unwrap_err();
            assert!(fault.line == line && fault.why.contains(words), "{fault:?}");
        }
    }

    #[test]
    fn no_key_of_ours_is_taken_for_another_programs() {
        let schema = super::super::schema();
        for (table, name, _) in KEYS {
            let path = match *table {
                "" => format!("/properties/{name}"),
                table if table.starts_with("[[") => {
                    format!("/properties/{}/items/properties/{name}", table.trim_matches(['[', ']']))
                }
                table => format!("/properties/{}/properties/{name}", table.trim_matches(['[', ']'])),
            };
            let parent = path.rsplit_once('/').unwrap().0;
            assert!(schema.as_value().pointer(parent).is_some(), "{table} is no table");
            assert!(schema.as_value().pointer(&path).is_none(), "{name} in {table:?} is a key");
        }
    }
}
