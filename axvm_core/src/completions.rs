//! `axvm completions`: a script for a shell, with what the command line's description does not know.
//!
//! ```text
//!   Cli --clap_complete--> commands, options, words of options  --+
//!   what a complaint about a value says there is  ----------------+--> script for bash, zsh, fish
//!   axvm completions --machines, asked at each Tab  --------------+
//! ```
//!
//! Left out: elvish and PowerShell get clap's script as it is.

use axvm_api::Registry;
use axvm_api::registry::Found;
use axvm_boot::cpu::{CpuModel, CpuTemplate};
use axvm_console::BackEnd;
use axvm_virtio::block::DiskConfig;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, CompletionsArgs};
use crate::error::ConfigError;
use crate::settings::{Cpus, NetSetting};
use crate::speech;

/// Prints the script, or the machines that run.
pub fn completions(args: &CompletionsArgs) -> Result<u8, ConfigError> {
    let text = match args.shell {
        Some(shell) => script(shell),
        None => machines(&Registry::of_user().machines().unwrap_or_default()),
    };
    speech::write(text).map(|()| 0).map_err(|source| ConfigError::Output { what: "the completions", source })
}

/// The names of machines, one a line; of one whose name says not which it is, the process id.
fn machines(running: &[Found]) -> String {
    let name = |machine: &Found| machine.status.as_ref().ok().map(|status| status.name.clone());
    let names: Vec<Option<String>> = running.iter().map(name).collect();
    let is_one = |name: &String| names.iter().flatten().filter(|other| *other == name).count() == 1;
    let words = running.iter().zip(&names).map(|(machine, name)| match name.as_ref().filter(|name| is_one(name)) {
        Some(name) => format!("{name}\n"),
        None => format!("{}\n", machine.pid),
    });
    words.collect()
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "axvm", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => script + &filled(BASH),
        Shell::Fish => {
            let verbs = "__fish_axvm_using_subcommand ctl; and not";
            script
                .replace(verbs, "__fish_axvm_using_subcommand ctl; and test (count (commandline -opc)) -gt 2; and not")
                + &filled(FISH)
        }
        Shell::Zsh => {
            // A kernel may come first, or a command: with both, zsh takes what follows for a second command. And one of the
            // guest's may come last.
            for argument in ["'::kernel_file ", "'::command "] {
                let line = script.find(argument).and_then(|at| Some(at..at + script[at..].find('\n')? + 1));
                if let Some(line) = line {
                    script.replace_range(line, "");
                }
            }
            let state = script.find("->axvm").unwrap_or(script.len());
            let end = script[state..].find("(run)").map_or(state, |at| state + at);
            let counted = script[state..end].replace("$line[3]", "$line[1]");
            script.replace_range(state..end, &counted);
            // Words with help know no parts: ours do.
            let model = "pmu=on|off]:";
            let mut rest = 0;
            while let Some(at) = script[rest..].find(model).map(|at| rest + at + model.len()) {
                let end = script[at..].find("))'").map_or(at, |end| at + end + 2);
                script.replace_range(at..end, "_axvm_cpu");
                rest = at;
            }
            let machine = "process id, or name:_default'";
            let script = script
                .replace(machine, &machine.replace("_default", "_axvm_machines"))
                .replace(":FILE[,ro][,serial=TEXT]:_files'", ":FILE[,ro][,serial=TEXT]:_axvm_disk'")
                .replace(":user|tap=NAME|...[,mac=ADDRESS]:_default'", ":user|tap=NAME|...[,mac=ADDRESS]:_axvm_net'")
                .replace(":WHERE:_default'", ":WHERE:_axvm_where'");
            let first = "autoload -U is-at-least\n";
            script.replacen(first, &(first.to_owned() + &filled(ZSH)), 1)
        }
        _ => script,
    }
}

/// Our part of a script, with the words that values have.
fn filled(part: &str) -> String {
    let join = |words: Vec<String>| words.join(" ");
    part.replace("{net}", &join(net_words(0)))
        .replace("{net-more}", &join(net_words(1)))
        .replace("{disk}", &join(after_comma::<DiskConfig>("disk.img,?")))
        .replace("{cpus}", &join(after_comma::<Cpus>("4,?")))
        .replace("{cpu}", &join(after_comma::<CpuModel>("host,?")))
        .replace("{models}", &CpuTemplate::ALL.map(|model| model.to_string()).join(" "))
        .replace("{where}", &join(after_comma::<BackEnd>("?")))
}

/// The words that the complaint about `?` says there are: the list is where values are read, and only there.
fn after_comma<T: std::str::FromStr<Err: ToString>>(wrong: &str) -> Vec<String> {
    let complaint = wrong.parse::<T>().err().map_or_else(String::new, |why| why.to_string());
    let list = complaint.split_once("; ").map_or("", |(_, list)| list.split(';').next().unwrap_or_default());
    let words = list.split([' ', ',']).filter(|word| !["there", "are", "say", "use", "or", ""].contains(word));
    words.filter(|word| !word.starts_with("path=")).flat_map(choices).collect()
}

/// What --net begins with (0), and what comes after (1): the complaint has both, with `, then` between them.
fn net_words(half: usize) -> Vec<String> {
    let complaint = "?".parse::<NetSetting>().err().unwrap_or_default();
    let list = complaint.split_once("there are ").map_or("", |(_, list)| list);
    let half = list.split(", then ").nth(half).unwrap_or_default();
    half.split(", ").flat_map(choices).collect()
}

/// `cache=writeback|writethrough` is two words; `serial=TEXT` is one that goes on.
fn choices(word: &str) -> Vec<String> {
    match word.split_once('=') {
        Some((key, value)) if value.starts_with(|letter: char| letter.is_ascii_uppercase()) => vec![format!("{key}=")],
        Some((key, values)) => values.split('|').map(|value| format!("{key}={value}")).collect(),
        None => vec![word.to_owned()],
    }
}

const BASH: &str = r#"
# Machines that run, and words inside of values.
_axvm_more() {
    local cur="${COMP_WORDS[COMP_CWORD]}" option="${COMP_WORDS[COMP_CWORD-1]}" before="" words=""
    [[ "${cur}" == = ]] && cur=""
    [[ "${option}" == = ]] && option="${COMP_WORDS[COMP_CWORD-2]}"
    [[ "${cur}" == *,* ]] && before="${cur%,*},"
    case "${option}:${before:+,}" in
        ctl:* | exec:*)
            mapfile -t COMPREPLY < <(compgen -W "$("$1" completions --machines 2>/dev/null)" -- "${cur}")
            return 0
            ;;
        --console: | --virtio-console:) words="{where}" ;;
        -d:, | --disk:,) words="{disk}" ;;
        --net:) words="{net}" ;;
        --net:,) words="{net-more}" ;;
        --cpu:,) words="{cpu}" ;;
        -c:, | --cpus:,) words="{cpus}" ;;
        -m:, | --memory:,) words="shared" ;;
    esac
    if [[ -z "${words}" ]]; then
        _axvm "$@"
        return
    fi
    mapfile -t COMPREPLY < <(compgen -P "${before}" -W "${words}" -- "${cur##*,}")
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _axvm_more -o bashdefault -o default axvm
"#;

const ZSH: &str = r#"
# Machines that run, and words inside of values.
_axvm_machines() {
    local -a names
    names=(${(f)"$(_call_program machines axvm completions --machines 2>/dev/null)"})
    compadd -a names || _files
}
_axvm_words() {
    local word
    for word in "$@"; do
        if [[ "$word" == *= ]]; then compadd -S '' -- "$word"; else compadd -- "$word"; fi
    done
}
_axvm_disk() {
    if compset -P '*,'; then _axvm_words {disk}; else _files; fi
}
_axvm_net() {
    if compset -P '*,'; then _axvm_words {net-more}; else _axvm_words {net}; fi
}
_axvm_cpu() {
    if compset -P '*,'; then _axvm_words {cpu}; else _axvm_words {models}; fi
}
_axvm_where() {
    _axvm_words {where}
}
"#;

const FISH: &str = r#"
# Machines that run, and words inside of values.
function __axvm_after_comma
    set -l word (string replace -r -- '^--?[a-z-]+=' '' (commandline -ct))
    string match -q -- '*,*' $word; or return
    printf '%s\n' (string replace -r -- '[^,]*$' '' $word)$argv
end
complete -c axvm -n "__fish_axvm_using_subcommand ctl; and test (count (commandline -opc)) -eq 2" -a "(axvm completions --machines 2>/dev/null)"
complete -c axvm -n "__fish_axvm_using_subcommand exec; and test (count (commandline -opc)) -eq 2" -a "(axvm completions --machines 2>/dev/null)"
complete -c axvm -l console -x -a "{where}"
complete -c axvm -l virtio-console -x -a "{where}"
complete -c axvm -s d -l disk -r -a "(__axvm_after_comma {disk})"
complete -c axvm -l net -x -a "{net} (__axvm_after_comma {net-more})"
complete -c axvm -s c -l cpus -x -a "(__axvm_after_comma {cpus})"
complete -c axvm -l cpu -x -a "(__axvm_after_comma {cpu})"
complete -c axvm -s m -l memory -x -a "(__axvm_after_comma shared)"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_is_taken() {
        let disk = after_comma::<DiskConfig>("disk.img,?");
        for word in ["ro", "serial=", "cache=writethrough", "block=4096"] {
            assert!(disk.iter().any(|offered| offered == word), "{word}: {disk:?}");
        }
        for word in &disk {
            let value = match &**word {
                "rate=" => "1M/s",
                "queues=" => "2",
                "engine=" => "sync",
                word if word.ends_with('=') => "x",
                _ => "",
            };
            let disk = format!("disk.img,{word}{value}").parse::<DiskConfig>();
            assert!(disk.is_ok(), "{word}: {disk:?}");
        }
        assert_eq!(net_words(0), ["user", "tap=", "fd=", "stream=", "dgram="]);
        let more = net_words(1);
        assert!(more.contains(&"host=on".into()) && more.contains(&"forward=".into()), "{more:?}");
        assert_eq!(after_comma::<BackEnd>("?"), ["stdio", "file=", "pty", "unix=", "none"]);
        let cpu = ["nested=on", "nested=off", "pmu=on", "pmu=off"];
        assert_eq!(after_comma::<CpuModel>("host,?"), cpu);
        assert!(cpu.iter().all(|word| format!("host,{word}").parse::<CpuModel>().is_ok()));
        assert_eq!(after_comma::<Cpus>("4,?"), ["sockets=", "cores=", "threads="]);
    }

    #[test]
    fn each_script_has_our_part() {
        for (shell, machines, disks) in [
            (Shell::Bash, "completions --machines", "block=4096"),
            (Shell::Fish, "completions --machines", "block=4096"),
            (Shell::Zsh, "or name:_axvm_machines'", "TEXT]:_axvm_disk'"),
        ] {
            let script = script(shell);
            assert!(script.contains(machines) && script.contains(disks), "{shell}");
            assert!(!script.contains("{disk}") && !script.contains("{where}"), "{shell}");
        }
        let zsh = script(Shell::Zsh);
        let (top, run) = zsh.split_once("(run)\n").unwrap();
        assert!(!top.contains("'::kernel_file ") && !top.contains("'::command ") && !top.contains("$line[3]"));
        assert!(top.contains("case $line[1] in"));
        assert!(run.contains("'::kernel_file "));
        assert!(script(Shell::Zsh).contains("_axvm_disk() {") && script(Shell::Zsh).contains(":WHERE:_axvm_where'"));
        assert!(zsh.contains("pmu=on|off]:_axvm_cpu' \\\n") && zsh.contains("_axvm_cpu() {"));
        assert!(zsh.contains("_axvm_words host ivybridge") && !zsh.contains("))' \\\n'--pin"));
        assert!(script(Shell::Fish).contains("-gt 2; and not __fish_seen_subcommand_from status"));
    }
}
