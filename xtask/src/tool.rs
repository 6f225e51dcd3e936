//! Other programs: start them, say clearly when they are missing or fail.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command for the program `name`, found also in the directories that users have not in their PATH.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(find(name).as_deref().unwrap_or(Path::new(name)));
    command.stdin(Stdio::null());
    command
}

/// A command for this program itself, also when a build has put a new one in its place since it began.
pub fn ourselves() -> Command {
    let mut command = tool("/proc/self/exe");
    command.arg0(env!("CARGO_PKG_NAME"));
    command
}

/// Where the program is, if this machine has it.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs to the end and gives what the program printed; a failure carries its words.
pub fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("Cannot start {}", show(command)))?;
    if !status.success() {
        let said = [stderr, stdout].concat();
        bail!("{} failed ({status}): {}", show(command), String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Installs packages by apt, as root or by `sudo -n`. Where that cannot be, the error is the line to type.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let line = format!("sudo apt-get install -y --no-install-recommends {}", packages.join(" "));
    if find("apt-get").is_none() {
        bail!(
            "Cannot install {}: this machine has no apt. Install it the way your distribution does",
            packages.join(", ")
        );
    }
    let install = || {
        let mut command = as_root("apt-get")?;
        command.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
        output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if install().is_err() {
        apt_update()
            .and_then(|()| install().map(drop))
            .with_context(|| format!("Cannot install packages. Type: {line}"))?;
    }
    Ok(())
}

/// Fetches the package lists.
pub fn apt_update() -> Result<()> {
    output(as_root("apt-get")?.args(["update", "-q"])).map(drop)
}

fn as_root(name: &str) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(tool(name));
    }
    if find("sudo").is_none() {
        bail!("Cannot run {name} as root: this machine has no sudo");
    }
    let mut command = tool("sudo");
    command.args(["-n", name]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_program_is_quoted_with_its_own_words() {
        let error = output(tool("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }

    #[test]
    fn missing_program_is_named() {
        let error = output(&mut tool("no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "Cannot start no-such-program");
        assert!(find("no-such-program").is_none() && find("sh").is_some());
    }
}
