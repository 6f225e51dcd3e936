//! The settings file as a user meets it: written from arguments and read again, overridden, moved, completed, documented.
//!
//! ```text
//!   arguments -> axvm config --from-args -> vm.toml -> the same machine
//! ```

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use axvm_boot::acpi::Acpi;
use axvm_core::cli::{Cli, RunArgs};
use axvm_core::config::Config;
use axvm_core::settings::{Settings, parse};
use axvm_core::{pages, settings};
use axvm_machine::KernelSource;
use clap::{CommandFactory, Parser};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const AXVM: &str = env!("CARGO_BIN_EXE_axvm");

fn args(words: &[&str]) -> RunArgs {
    Cli::try_parse_from(["axvm"].iter().chain(words)).unwrap_or_else(|error| panic!("{words:?}: {error}")).run
}

fn said(words: &[&str]) -> Settings {
    args(words).settings().unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Every option with every kind of value that it takes.
const OPTIONS: [&[&str]; 85] = [
    &["--name=web-1"],
    &["--kernel", "bzImage"],
    &["--kernel", "a 'b' \"c\" \\ ä\n"],
    &["--initrd", "initrd.img"],
    &["--disk", "a.img"],
    &["-d", "path=a.img,ro", "-d", "b.img,serial=B,cache=writethrough"],
    &["-d", "a,cache=writeback,serial="],
    &["-d", "a,format=raw,block=4096"],
    &["--net", "user"],
    &["--net", "user,forward=2222:22,forward=udp:0.0.0.0:5353:53,host=on,mtu=1500,mac=02:00:00:00:00:01"],
    &["--net", "fd=3", "--net", "tap=tap0,queues=4,offload=off", "--net", "stream=a,,b.sock"],
    &["--net", "dgram=a:b", "--net", "dgram=127.0.0.1:1:[::1]:2"],
    &["--cpus", "20"],
    &["--cpus", "20,sockets=2,cores=5,threads=2"],
    &["--memory", "4G"],
    &["--memory", "1537M,shared"],
    &["--hugepages", "thp"],
    &["--hugepages", "2M"],
    &["--hugepages", "1G"],
    &["--hugepages", "off"],
    &["--prealloc"],
    &["--prealloc=off"],
    &["--lock"],
    &["--lock=off"],
    &["--append", "quiet x=\"a b\" --"],
    &["--append", ""],
    &["--entry", "32"],
    &["--entry", "64"],
    &["--entry", "pvh"],
    &["--entry", "multiboot"],
    &["--cpu", "host"],
    &["--cpu", "ivybridge"],
    &["--cpu", "host,nested=on"],
    &["--cpu", "ivybridge,pmu=on,nested=off"],
    &["--pin", "0-9,20,1023"],
    &["--acpi", "full"],
    &["--acpi", "cpus"],
    &["--acpi", "off"],
    &["--bus", "auto"],
    &["--bus", "mmio"],
    &["--bus", "pci"],
    &["--entropy-rate", "1K/s:10ops/s"],
    &["--no-acpi"],
    &["--no-acpi=off"],
    &["--on-reboot", "restart"],
    &["--on-reboot", "end"],
    &["--on-crash", "end"],
    &["--on-crash", "restart"],
    &["--on-panic", "end"],
    &["--on-panic", "restart"],
    &["--on-panic", "continue"],
    &["--on-halt", "end"],
    &["--on-halt", "wait"],
    &["--restart-limit", "0"],
    &["--silence", "3"],
    &["--explain"],
    &["--explain", "3"],
    &["--gdb"],
    &["--gdb", "unix=web.gdb"],
    &["--gdb-wait"],
    &["--symbols", "System.map"],
    &["--lint", "auto"],
    &["--lint", "on"],
    &["--lint", "off"],
    &["--virtio-check", "off"],
    &["--virtio-check", "log"],
    &["--virtio-check", "stop"],
    &["--grace", "0"],
    &["--timeout", "5m"],
    &["--verbose"],
    &["-v=off"],
    &["--trace", "boot.json,limit=1G"],
    &["--flight-recorder"],
    &["--trace-kicks"],
    &["--console", "stdio"],
    &["--console", "file=a=b"],
    &["--virtio-console", "unix=s", "--console", "pty"],
    &["--virtio-console", "none"],
    &["--debugcon", "file=debug.log"],
    &["--debug-exit", "0xf4"],
    &["--api-sock", "web.api"],
    &["--sandbox", "off"],
    &["--agent-port", "web.agent"],
    &["--vsock"],
    &["--vsock", "cid=5,socket=web.vsock"],
];

#[test]
fn every_option_survives_the_way_through_the_file() {
    for words in OPTIONS {
        let said = said(words);
        assert_ne!(said, Settings::default(), "{words:?} says something");
        let text = said.write().unwrap();
        assert_eq!(parse(&text), Ok(said), "{words:?} became\n{text}");
    }
}

#[test]
fn no_option_is_missing_from_the_table_or_from_the_file() {
    let known = settings::schema();
    let keys = known.as_value()["properties"].as_object().unwrap();
    let memory = keys["memory"]["properties"].as_object().unwrap();
    for option in Cli::command().get_arguments().filter_map(|option| option.get_long().map(str::to_owned)) {
        if matches!(option.as_str(), "config" | "help" | "version") {
            continue;
        }
        assert!(keys.contains_key(&option) || memory.contains_key(&option), "--{option} is not in the file");
        let (long, short) = (format!("--{option}"), format!("-{}", option.chars().next().unwrap()));
        let is_it = |word: &&str| word.split('=').next() == Some(&long) || **word == short;
        assert!(OPTIONS.iter().any(|words| words.iter().any(is_it)), "{long} is not tried");
    }
}

/// The words of some options, each with some value.
fn any_words() -> impl Strategy<Value = Vec<String>> {
    let text = || option::of("[^\0]{1,12}".boxed());
    let switch = || option::of(prop_oneof![Just("on".to_owned()), Just("off".into())].boxed());
    let size = option::of((2u64..1 << 26).prop_map(|mib| format!("{mib}M")).boxed());
    let end = prop_oneof![Just("stdio".to_owned()), "file=.{1,9}", "unix=.{1,9}", Just("pty".into())];
    let end = || option::of(end.clone().boxed());
    let disks = vec(
        "([^,=]|,,){1,9}(,ro)?(,serial=([^,]|,,){0,5})?(,cache=writethrough)?(,format=raw)?(,block=(512|4096))?",
        0..4,
    );
    let name = option::of("[a-zA-Z][a-zA-Z0-9_.-]{0,63}".boxed());
    let pin = option::of("[0-9]{1,3}(,[0-4]-[5-9]){0,3}".boxed());
    let (kernel, initrd, append, api_sock) = (text(), text(), text(), text());
    let options = [
        ("name", name),
        ("kernel", kernel),
        ("initrd", initrd),
        ("append", append),
        ("api-sock", api_sock),
        ("memory", size),
        ("console", end()),
        ("virtio-console", end()),
        ("pin", pin),
        ("prealloc", switch()),
        ("lock", switch()),
        ("verbose", switch()),
        ("sandbox", switch()),
    ];
    let (names, values): (Vec<_>, Vec<_>) = options.into_iter().unzip();
    (values, disks).prop_map(move |(values, disks)| {
        let given = names.iter().zip(values).filter_map(|(name, value)| Some(format!("--{name}={}", value?)));
        given.chain(disks.iter().map(|disk| format!("--disk={disk}"))).collect()
    })
}

proptest! {
    #[test]
    fn what_was_said_survives_the_way_through_the_file(words in any_words()) {
        // Some random words say what cannot be; they are refused before they could be written.
        if let Ok(cli) = Cli::try_parse_from(["axvm".to_owned()].iter().chain(&words)) {
            let said = cli.run.settings().unwrap();
            let text = said.write().unwrap();
            prop_assert_eq!(parse(&text), Ok(said), "{}", text);
        }
    }

    #[test]
    fn any_text_is_settings_or_is_wrong_at_a_place_in_it(text in "(kernel|cpus|memory|disk|[a-z\\[\\]={}'\"\n #0-9.]|.){0,40}") {
        if let Err(fault) = parse(&text) {
            prop_assert!(fault.line >= 1 && fault.line <= text.matches('\n').count() + 1, "{:?}", fault);
            prop_assert!(fault.column >= 1 && !fault.why.is_empty(), "{:?}", fault);
        }
    }
}

#[test]
fn the_command_line_goes_before_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.toml");
    let text = "kernel = 'k'\ngrace = 3\nverbose = true\nno-acpi = true\n[cpus]\ncount = 4\nthreads = 2\n\
                [memory]\nsize = '1G'\nshared = true\nhugepages = 'off'\n[[disk]]\npath = 'a'\n[[disk]]\npath = 'b'";
    fs::write(&file, text).unwrap();
    let config = |words: &[&str]| {
        let words = [&["--config", file.to_str().unwrap()], words].concat();
        Config::from_args(args(&words)).unwrap()
    };
    let plain = config(&[]);
    assert_eq!(
        (plain.settings.grace(), plain.settings.verbose(), plain.machine.acpi.has_tables(), plain.machine.disks.len()),
        (3, true, false, 2)
    );
    assert_eq!((plain.machine.topology.count(), plain.machine.topology.threads), (4, 2));
    assert!(plain.machine.memory.shared && plain.machine.memory.size == 1 << 30 && !plain.by_default);
    let other = config(&["-c", "3", "-m", "2G", "-d", "c", "-v=off", "--no-acpi=off", "--grace", "9"]);
    assert_eq!(
        (other.settings.grace(), other.settings.verbose(), other.machine.acpi.has_tables(), other.machine.disks.len()),
        (9, false, true, 1)
    );
    assert_eq!((other.machine.topology.count(), other.machine.topology.threads), (3, 1));
    assert!(!other.machine.memory.shared && other.machine.memory.size == 2 << 30);
    assert_eq!(other.machine.memory.pages, plain.machine.memory.pages);
    assert_eq!(config(&["--acpi", "cpus"]).machine.acpi, Acpi::Cpus, "over the file's no-acpi");
}

#[test]
fn the_former_word_for_an_end_is_understood() {
    let ends = said(&["--on-reboot", "end"]);
    assert_eq!(said(&["--on-reboot", "exit"]), ends);
    assert_eq!(parse("on-reboot = 'exit'"), Ok(ends.clone()));
    assert!(ends.write().unwrap().contains("on-reboot = \"end\""));
}

#[test]
fn a_size_on_the_command_line_decides_about_sharing_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.toml");
    fs::write(&file, "[memory]\nsize = '1G'\nshared = true\nlock = true").unwrap();
    let memory = |words: &[&str]| said(&[&["--config", file.to_str().unwrap()], words].concat()).memory;
    let shared = |words: &[&str]| (memory(words).size.unwrap().to_string(), memory(words).shared, memory(words).lock);
    assert_eq!(shared(&[]), ("1G".into(), Some(true), Some(true)));
    assert_eq!(shared(&["-m", "2G"]), ("2G".into(), None, Some(true)));
    assert_eq!(shared(&["-m", "2G,shared", "--lock=off"]), ("2G".into(), Some(true), Some(false)));
}

#[test]
fn paths_in_a_file_start_at_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.toml");
    let text = "kernel = 'k'\ninitrd = '/i'\nconsole = 'file=c'\nvirtio-console = 'unix=v'\napi-sock = 'a'\n\
                agent-port = 'p'\n\
                [[disk]]\npath = '../d'";
    fs::write(&file, text).unwrap();
    let config = Config::from_args(args(&["--config", file.to_str().unwrap(), "-d", "here"])).unwrap();
    let there = |name: &str| directory.path().join(name);
    assert_eq!(config.machine.kernel, KernelSource::File(there("k")));
    assert_eq!(config.machine.initrd.as_deref(), Some(Path::new("/i")));
    assert_eq!(config.settings.api_sock, Some(there("a")));
    assert_eq!(config.agent_port, Some(there("p")));
    assert_eq!(config.console.to_string(), format!("file={}", there("c").display()));
    assert_eq!(config.virtio_console.unwrap().to_string(), format!("unix={}", there("v").display()));
    assert_eq!(config.machine.disks[0].path, Path::new("here"), "the command line's start where the user is");
}

#[test]
fn a_machine_is_named_after_its_kernel() {
    let name = |words: &[&str]| Config::from_args(args(words)).unwrap().name;
    assert_eq!(name(&["-k", "/boot/vmlinuz-6.1.0-13"]), "vmlinuz-6.1.0-13");
    assert_eq!(name(&["-k", "/boot/"]), "boot");
    assert_eq!(name(&["-k", "/"]), "axvm");
    assert_eq!(name(&["-k", "bzImage", "--name", "web"]), "web");
}

#[test]
fn the_terminal_goes_to_the_virtio_console_if_only_that_asks() {
    let config = |words: &[&str]| Config::from_args(args(&[&["-k", "k"], words].concat())).unwrap();
    assert!(!config(&[]).machine.kernel_uses_virtio_console);
    assert!(config(&["--virtio-console", "stdio"]).machine.kernel_uses_virtio_console);
    assert!(!config(&["--virtio-console", "pty"]).machine.kernel_uses_virtio_console);
    assert!(config(&["--virtio-console", "pty", "--console", "none"]).machine.kernel_uses_virtio_console);
}

#[test]
fn the_published_schema_is_the_one_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vm.schema.json");
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(published == pages::schema(), "docs/vm.schema.json is old: axvm config --schema > docs/vm.schema.json");
}

/// The keys of a schema and of the tables in it.
fn keys_of(schema: &serde_json::Value) -> Vec<String> {
    let own = schema["properties"].as_object().into_iter().flatten();
    own.flat_map(|(key, inner)| {
        let inner = [keys_of(inner), keys_of(&inner["items"])].concat();
        if inner.is_empty() { vec![key.clone()] } else { inner }
    })
    .collect()
}

/// The example with every key in force.
fn whole_example() -> (String, Settings) {
    let example = axvm(&["config", "--example"]);
    assert!(parse(&example).is_ok(), "{:?}", parse(&example));
    let is_key =
        |line: &str| line.starts_with("# [") || line.starts_with("# ") && line.split_whitespace().nth(2) == Some("=");
    let all: String = example.lines().map(|l| format!("{}\n", if is_key(l) { &l[2..] } else { l })).collect();
    let said = parse(&all).unwrap_or_else(|error| panic!("{error:?} in\n{all}"));
    (all, said)
}

#[test]
fn the_example_has_every_key_and_each_line_of_it_works() {
    let (all, said) = whole_example();
    let keys = keys_of(settings::schema().as_value());
    assert!(keys.len() > 20, "{keys:?}");
    let written = all.lines().filter_map(|line| line.split_once(" = ").map(|(key, _)| key)).collect::<Vec<_>>();
    let missing: Vec<_> = keys.iter().filter(|key| !written.contains(&key.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(said.cpus.unwrap().topology().is_ok());
}

#[test]
fn what_help_and_example_call_a_default_is_one() {
    let (default, shown) = (Settings::default(), whole_example().1);
    assert_eq!(
        (shown.on_reboot(), shown.grace(), shown.cpu(), shown.acpi(), shown.bus()),
        (default.on_reboot(), default.grace(), default.cpu(), default.acpi(), default.bus())
    );
    let ends = |s: &Settings| {
        (s.on_crash(), s.on_panic(), s.on_halt(), s.restart_limit(), s.silence(), s.lint(), s.virtio_check())
    };
    assert_eq!(ends(&shown), ends(&default));
    let switches = |settings: &Settings| (settings.verbose(), settings.no_acpi(), settings.sandbox());
    assert_eq!(switches(&shown), switches(&default));
    let memory =
        |s: &Settings| (s.memory.size(), s.memory.shared(), s.memory.hugepages(), s.memory.prealloc(), s.memory.lock());
    assert_eq!(memory(&shown), memory(&default));
    let command = Cli::command();
    for (option, value) in [
        ("grace", default.grace().to_string()),
        ("restart-limit", default.restart_limit().to_string()),
        ("silence", default.silence().to_string()),
        ("cpu", default.cpu().to_string()),
        ("acpi", default.acpi().to_string()),
        ("bus", default.bus().to_string()),
        ("memory", default.memory.size().to_string()),
        ("hugepages", default.memory.hugepages().to_string()),
        ("sandbox", if default.sandbox() { "on".into() } else { "off".into() }),
    ] {
        let help = command.get_arguments().find(|arg| arg.get_long() == Some(option)).and_then(|arg| arg.get_help());
        let help = help.unwrap().to_string();
        assert!(help.contains(&format!("[default: {value}]")), "--{option}: {help}");
    }
}

fn axvm(words: &[&str]) -> String {
    let output = Command::new(AXVM).args(words).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "axvm {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `program` says of `text` on its standard input; `None` where there is no such program.
fn judged_by(program: &[&str], text: &str) -> Option<Output> {
    let mut command = Command::new(program[0]);
    let pipes = command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = pipes.spawn() else {
        let _ = writeln!(std::io::stderr(), "skipped: no {} here", program[0]);
        return None;
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[test]
fn a_written_file_is_read_again_by_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.toml");
    let written = axvm(&["config", "--from-args", "-k", "/k", "-c", "2", "-m", "1G", "-d", "/d,ro", "-v"]);
    fs::write(&file, &written).unwrap();
    assert_eq!(axvm(&["config", "--from-args", "--config", file.to_str().unwrap()]), written);
    let more = axvm(&["config", "--from-args", "--config", file.to_str().unwrap(), "-m", "2G"]);
    assert_eq!(more, written.replace("1G", "2G"));
}

#[test]
fn completions_know_every_option_and_bash_takes_them() {
    let options: Vec<String> = Cli::command().get_arguments().filter_map(|o| o.get_long().map(str::to_owned)).collect();
    assert!(options.len() > 20);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = axvm(&["completions", shell]);
        let missing: Vec<_> = options.iter().filter(|option| !script.contains(*option)).collect();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        if let Some(output) = judged_by(&[shell, "-n"], &axvm(&["completions", shell])) {
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn manual_pages_tell_every_option_without_a_warning() {
    let mut program = Cli::command();
    program.build();
    let whole = (None, &program);
    let commands = program.get_subcommands().filter(|command| command.get_name() != "help");
    for (name, command) in [whole].into_iter().chain(commands.map(|command| (Some(command.get_name()), command))) {
        let page = axvm(&["man"].into_iter().chain(name).collect::<Vec<_>>());
        let shown = command.get_arguments().filter(|option| !option.is_hide_set());
        for option in shown.filter_map(|option| option.get_long()) {
            assert!(page.contains(&option.replace('-', "\\-")), "axvm man {name:?} lacks --{option}");
        }
        let Some(output) = judged_by(&["groff", "-man", "-Tutf8", "-ww", "-z"], &page) else { return };
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "axvm man {name:?}: {warnings}");
    }
}
