//! Words that people bring from other programs: which of AxVM's is meant.
//!
//! ```text
//!   axvm run -hda disk.img    --> There is no option -hda: a disk image is given with --disk FILE
//!   axvm status web           --> There is no command status: say axvm ctl web status
//! ```
//!
//! They are looked for before clap reads the command line: to clap `-hda` is `-h`, and `-kernel` is `-k ernel`. Left
//! out: values in their words, but for those of disks and network cards; keys of a settings file (`settings::peers`).

use std::path::Path;

use clap::{Arg, Command};

use crate::error::ConfigError;

const NETWORK: &str = "a network card is given with --net user, or --net tap=NAME";
const TAP: &str = "a tap device is given with --net tap=NAME";
const MAC: &str = "a card's address is given with it: --net user,mac=ADDRESS";
const FORWARD: &str = "a port of the guest is reached with --net user,forward=HOST:GUEST";
const VSOCK: &str = "a socket device is given with --vsock cid=N,socket=PATH; --vsock alone takes cid 3";
const TERMINAL: &str = "leave it out; the serial console is this terminal, and there is no display";
const KVM: &str = "leave it out; there is one kind of machine, and KVM runs it";
const KERNEL: &str = "a kernel is given with --kernel FILE";
const INITRD: &str = "an initial RAM disk is given with --initrd FILE";
const APPEND: &str = "words for the kernel are given with --append TEXT";
const CPUS: &str = "vCPUs are given with --cpus N";
const MEMORY: &str = "guest RAM is given with --memory SIZE";
const DISK: &str = "a disk image is given with --disk FILE";
const CONSOLE: &str = "the serial console goes where --console WHERE says";
const API: &str = "a control socket is given with --api-sock PATH";
const SANDBOX: &str = "the sandbox is switched with --sandbox on|off";

/// Options with two dashes, without them.
const LONG: &[(&str, &str)] = &[
    ("network", NETWORK),
    ("netdev", NETWORK),
    ("nic", NETWORK),
    ("nics", NETWORK),
    ("net-device", NETWORK),
    ("network-interface", NETWORK),
    ("passt", NETWORK),
    ("tap", TAP),
    ("tap-device", TAP),
    ("tap-cmd", TAP),
    ("host-dev-name", TAP),
    ("mac", MAC),
    ("guest-mac", MAC),
    ("port", FORWARD),
    ("publish", FORWARD),
    ("hostfwd", FORWARD),
    ("vhost-vsock", VSOCK),
    ("guest-cid", VSOCK),
    ("virtio-vsock", VSOCK),
    ("initramfs", INITRD),
    ("ramdisk", INITRD),
    ("cmdline", APPEND),
    ("params", APPEND),
    ("mem", MEMORY),
    ("ram", MEMORY),
    ("smp", CPUS),
    ("vcpus", CPUS),
    ("drive", DISK),
    ("block", DISK),
    ("rootfs", DISK),
    ("hda", DISK),
    ("serial", CONSOLE),
    ("api-socket", API),
    ("socket", API),
    ("config-file", "a settings file, in TOML, is given with --config FILE"),
    ("seccomp", SANDBOX),
    ("no-seccomp", SANDBOX),
    ("no-sandbox", SANDBOX),
    ("firmware", KERNEL),
    ("bios", KERNEL),
];

/// Options with one dash, without it: as QEMU has them.
const SHORT: &[(&str, &str)] = &[
    ("kernel", KERNEL),
    ("bios", KERNEL),
    ("pflash", KERNEL),
    ("initrd", INITRD),
    ("append", APPEND),
    ("smp", CPUS),
    ("cpu", "the CPU model is given with --cpu host, their number with --cpus N"),
    ("mem-prealloc", "memory is taken at the start with --prealloc"),
    ("drive", DISK),
    ("blockdev", DISK),
    ("hda", DISK),
    ("hdb", "a second disk image is given with another --disk FILE"),
    ("sda", DISK),
    ("cdrom", "an image that may only be read is given with --disk FILE,ro"),
    (
        "device",
        "disks are given with --disk FILE, network cards with --net user, a virtio console with --virtio-console WHERE, isa-debug-exit with --debug-exit PORT, vhost-vsock-pci with --vsock cid=N; the rest is always there",
    ),
    ("net", NETWORK),
    ("netdev", NETWORK),
    ("nic", NETWORK),
    ("redir", FORWARD),
    ("name", "the machine's name is given with --name NAME"),
    ("serial", CONSOLE),
    ("debugcon", "a debug console is given with --debugcon WHERE"),
    ("chardev", CONSOLE),
    ("monitor", API),
    ("qmp", API),
    ("nographic", TERMINAL),
    ("display", TERMINAL),
    ("vga", TERMINAL),
    ("curses", TERMINAL),
    ("enable-kvm", KVM),
    ("accel", KVM),
    ("machine", KVM),
    ("action", "what follows is said with --on-reboot, --on-crash, --on-panic and --on-halt"),
    ("no-reboot", "a reset ends the machine with --on-reboot end"),
    ("daemonize", "put it into the background: axvm run ... &"),
    ("version", "say axvm --version"),
    ("help", "say axvm --help"),
];

/// Commands. MACHINE becomes the next word, if there is one.
const COMMANDS: &[(&str, &str)] = &[
    ("start", "a machine is started by axvm run --kernel FILE"),
    ("boot", "a machine is started by axvm run --kernel FILE"),
    ("create", "a machine is started by axvm run --kernel FILE"),
    ("stop", "say axvm ctl MACHINE shutdown; or axvm ctl MACHINE stop, which does not ask the guest"),
    ("shutdown", "say axvm ctl MACHINE shutdown"),
    ("poweroff", "say axvm ctl MACHINE shutdown"),
    ("kill", "say axvm ctl MACHINE stop"),
    ("pause", "say axvm ctl MACHINE pause"),
    ("resume", "say axvm ctl MACHINE resume"),
    ("nmi", "say axvm ctl MACHINE nmi"),
    ("inject-nmi", "say axvm ctl MACHINE nmi"),
    ("reset", "say axvm ctl MACHINE reset"),
    ("reboot", "say axvm ctl MACHINE reset"),
    ("status", "say axvm ctl MACHINE status; axvm ps lists the machines"),
    ("info", "say axvm ctl MACHINE status; axvm ps lists the machines"),
    ("console", "say axvm ctl MACHINE console"),
    ("attach", "say axvm ctl MACHINE console"),
    ("events", "say axvm ctl MACHINE events"),
    ("ssh", "a command in a guest, or its shell, is run by axvm exec"),
    ("shell", "a command in a guest, or its shell, is run by axvm exec"),
    ("list", "say axvm ps"),
    ("ls", "say axvm ps"),
    ("version", "say axvm --version"),
    ("check", "say axvm doctor, which looks at the host, or axvm selftest, which tries it"),
    ("test", "say axvm selftest"),
];

/// Parts of --disk and --net, by how the complaint about them begins.
const PARTS: &[(&str, &str)] = &[
    ("option 'readonly", "ro is what attaches an image read-only"),
    ("option 'read-only", "ro is what attaches an image read-only"),
    ("option 'ro=", "ro alone is what attaches an image read-only"),
    ("option 'is_read_only", "ro is what attaches an image read-only"),
    ("option 'file=", "path=FILE is what names the image"),
    ("option 'filename=", "path=FILE is what names the image"),
    ("option 'path_on_host=", "path=FILE is what names the image"),
    ("option 'snapshot", "ephemeral is what keeps the image as it is"),
    ("option 'werror=", "on-full=pause and on-full=report are what there is for a host without room"),
    ("'hostfwd=", "forward=HOST:GUEST is what leads to the guest"),
    ("'ifname=", "tap=NAME is what names a tap device"),
    ("'iface=", "tap=NAME is what names a tap device"),
    ("'path=", "stream=PATH is what connects to a socket"),
    ("'id=", "the first card is net0, the next net1"),
    ("'model=", "a card is always a virtio-net device"),
    ("'passt", "user is what connects by passt"),
    ("'none", "leave --net out for no network"),
    ("option 'iops=", "rate=1000ops/s is what limits operations"),
    ("option 'bps=", "rate=10M/s is what limits bytes"),
    ("option 'throttling.", "rate=10M/s:1000ops/s is what limits bytes and operations"),
    ("option 'bw_size=", "rate=10M/s is what limits bytes"),
    ("option 'ops_size=", "rate=1000ops/s is what limits operations"),
    ("option 'logical_block_size=", "block=SIZE is what sets the block size"),
];

/// What is said to who typed `words`, the command line after the name of `program`, if they are another program's.
pub fn meant(program: &Command, words: &[String]) -> Option<ConfigError> {
    let is_command = |word: &str| word == "help" || program.find_subcommand(word).is_some();
    let (first, next) = (words.first()?, words.get(1));
    if !first.starts_with('-') && !is_command(first) && !is_file(first) {
        let found = find(COMMANDS, first).map(|meant| match next.filter(|next| !next.starts_with('-')) {
            Some(machine) => meant.replace("MACHINE", machine),
            None => meant.to_owned(),
        });
        return Some(ConfigError::word("command", first, found.unwrap_or_else(|| unknown(program, first))));
    }
    if is_command(first) && !["run", "config"].contains(&first.as_str()) {
        return None;
    }
    let mut before = "";
    for word in words.iter().take_while(|word| *word != "--") {
        // What follows these may be anything.
        if !["-p", "--append"].contains(&before)
            && let Some(meant) = option(word)
        {
            return Some(ConfigError::word("option", word, meant));
        }
        if first.starts_with('-') && is_command(word) && !takes_value(program, before) {
            return Some(ConfigError::word(
                "place here for",
                word,
                "a command comes first, without options of axvm run",
            ));
        }
        before = word;
    }
    None
}

/// Whether `word` is an option of run whose value is the next word.
fn takes_value(program: &Command, word: &str) -> bool {
    let is_it = |option: &&Arg| {
        let long = option.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
        long || option.get_short().is_some_and(|short| word.strip_prefix('-') == Some(short.to_string().as_str()))
    };
    let takes_next = |option: &Arg| {
        option.get_action().takes_values() && option.get_num_args().is_none_or(|count| count.min_values() > 0)
    };
    program.get_arguments().find(is_it).is_some_and(takes_next)
}

/// What is meant by an option.
fn option(word: &str) -> Option<&'static str> {
    let name = word.split('=').next()?;
    match name.strip_prefix("--") {
        Some(long) => find(LONG, long),
        None => find(SHORT, word.strip_prefix('-')?),
    }
}

/// `why`, with what was meant.
pub fn with_hint(why: String) -> String {
    match PARTS.iter().find(|(complaint, _)| why.starts_with(complaint)) {
        Some((_, hint)) => format!("{why}; {hint}"),
        None => why,
    }
}

/// A kernel, perhaps: a path, what is no text (and was made one), or a file that is here.
fn is_file(word: &str) -> bool {
    word.contains(['/', char::REPLACEMENT_CHARACTER]) || Path::new(word).exists()
}

/// Neither a command nor a file, nor a word of another program.
fn unknown(program: &Command, word: &str) -> String {
    let known: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
    let nearest = known.iter().map(|name| (strsim::jaro_winkler(word, name), name));
    match nearest.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((_, name)) => format!("did you mean axvm {name}? axvm --help tells more"),
        None => {
            format!("there are {}; nor is it a kernel, no such file is here; axvm --help tells more", known.join(", "))
        }
    }
}

/// From here on two words are alike.
const ALIKE: f64 = 0.8;

fn find(table: &[(&str, &'static str)], word: &str) -> Option<&'static str> {
    table.iter().find(|(name, _)| *name == word).map(|(_, meant)| *meant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    fn told(words: &str) -> Option<String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        meant(&Cli::command(), &words).map(|error| error.to_string())
    }

    #[test]
    fn no_word_of_ours_is_taken_for_another_programs() {
        let mut program = Cli::command();
        program.build();
        let run = program.find_subcommand("run").unwrap();
        for (name, _) in LONG {
            assert!(run.get_arguments().all(|option| option.get_long() != Some(*name)), "--{name} is an option");
        }
        for (name, _) in SHORT {
            assert!(name.len() > 1, "-{name} may be an option");
        }
        for (name, _) in COMMANDS {
            assert!(program.find_subcommand(name).is_none(), "{name} is a command");
        }
        for words in [
            "run -k k -m 1G",
            "-p -kernel",
            "run --append --netdev",
            "ctl web status",
            "ps -q",
            "/no/such/kernel",
            "--name run",
            "-k config",
        ] {
            assert_eq!(told(words), None, "{words}");
        }
    }

    #[test]
    fn what_a_table_names_exists() {
        let mut program = Cli::command();
        program.build();
        let run = program.find_subcommand("run").unwrap();
        let ctl = program.find_subcommand("ctl").unwrap();
        for (name, meant) in LONG.iter().chain(SHORT).chain(COMMANDS) {
            let clean = |word: &str| word.trim_matches([';', ',', '.']).to_owned();
            let words: Vec<String> = meant.split(' ').map(clean).collect();
            for word in words.iter().filter_map(|word| word.strip_prefix("--")) {
                let is_ours = run.get_arguments().any(|option| option.get_long() == Some(word));
                assert!(is_ours || ["version", "help"].contains(&word), "{name}: --{word}");
            }
            for pair in words.windows(2) {
                let [before, word] = pair else { continue };
                let holder = match before.as_str() {
                    "axvm" if !word.starts_with("--") => &program,
                    "MACHINE" => ctl,
                    _ => continue,
                };
                assert!(holder.find_subcommand(word).is_some(), "{name}: {before} {word}");
            }
        }
    }
}
