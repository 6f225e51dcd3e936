//! `axvm agent`: the program in a guest that runs commands, which this program carries.
//!
//! ```text
//!   build_agent.rs --> OUT_DIR/agent --> AGENT --> standard output, or the guest's initrd
//! ```

use axvm_cpio::Cpio;

use crate::cli::AgentArgs;
use crate::error::ConfigError;
use crate::speech;

/// The program; empty where there was no static C library to build it with.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// What starts it in a guest with systemd.
const UNIT: &str = "\
# Runs commands for the host: axvm exec. Install as /etc/systemd/system/axvm-agent.service, the agent as
# /usr/local/sbin/axvm-agent, and say: systemctl enable --now axvm-agent
[Unit]
Description=Commands from the host (axvm exec)
ConditionVirtualization=vm
# Where vsock is a module; what fails here does not matter to the rest.
Wants=modprobe@vmw_vsock_virtio_transport.service
After=modprobe@vmw_vsock_virtio_transport.service

[Service]
ExecStart=/usr/local/sbin/axvm-agent
Restart=on-failure
RestartSec=1
# What a command left behind stays when the agent is started again.
KillMode=process

[Install]
WantedBy=multi-user.target
";

/// Where the agent lies in a guest's initrd, for `rdinit=`.
pub const PATH: &str = "/axvm-agent";

/// The agent as an archive that Linux unpacks after an initrd, or alone.
pub fn archive() -> Result<Vec<u8>, ConfigError> {
    let mut archive = Cpio::default();
    // A first process without these has no streams.
    archive.directory("dev");
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.file(PATH.trim_start_matches('/'), 0o755, program()?);
    Ok(archive.finish())
}

/// Prints the program, its archive or its unit.
pub fn agent(args: &AgentArgs) -> Result<u8, ConfigError> {
    let page = match (args.systemd, args.initrd) {
        (true, _) => UNIT.into(),
        (_, true) => archive()?,
        _ => program()?.to_vec(),
    };
    speech::write(page).map(|()| 0).map_err(|source| ConfigError::Output { what: "the agent", source })
}

/// The agent, if this program carries one.
pub fn program() -> Result<&'static [u8], ConfigError> {
    match AGENT {
        [] => Err(ConfigError::words(
            "axvm agent",
            "this axvm was built without one, for want of a static C library (Fedora: glibc-static); install that, and \
             build axvm again",
        )),
        agent => Ok(agent),
    }
}
