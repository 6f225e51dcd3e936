//! The agent's port: how the host reaches the agent where the kernel has no vsock. One connection at a time.
//!
//! ```text
//!   /sys/class/virtio-ports/vport0p1/name: org.axvm.agent --> /dev/vport0p1
//!   open --> bytes come: a client of the host --> a session has it --> it closes: the next one
//! ```
//!
//! The host tells the connections apart by open and close, so each session has an open of its own.
//!
//! Source: Linux drivers/char/virtio_console.c.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// What the host calls it.
const NAME: &str = "org.axvm.agent";
/// The kernel's ports, each a directory with its name in it.
const PORTS: &str = "/sys/class/virtio-ports";
/// All virtio devices, and what their drivers agreed on.
const DEVICES: &str = "/sys/bus/virtio/devices";
/// How long a port may take to get its name.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the host may take to see that a session has closed.
const REST: Duration = Duration::from_millis(50);

/// The device of the agent's port, if the machine has one, and the kernel its driver.
pub fn find() -> Option<PathBuf> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = find_in(Path::new(PORTS));
        // The driver learns the names of its ports a moment after it has its device.
        if found.is_some() || !has_ports(Path::new(DEVICES)) || Instant::now() > until {
            return found;
        }
        thread::sleep(REST);
    }
}

/// Whether there is a console device whose driver agreed on ports: the second letter of its features.
fn has_ports(devices: &Path) -> bool {
    let Ok(mut devices) = fs::read_dir(devices) else { return false };
    devices.any(|device| {
        let read = |file| device.as_ref().ok().and_then(|device| fs::read_to_string(device.path().join(file)).ok());
        let is_console = read("device").is_some_and(|id| id.trim() == "0x0003");
        is_console && read("features").is_some_and(|features| features.as_bytes().get(1) == Some(&b'1'))
    })
}

fn find_in(ports: &Path) -> Option<PathBuf> {
    let mut ports = fs::read_dir(ports).ok()?.flatten();
    let port = ports.find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == NAME))?;
    Some(Path::new("/dev").join(port.file_name()))
}

/// Waits for the next connection.
pub fn accept(device: &Path) -> io::Result<OwnedFd> {
    loop {
        let port = match File::options().read(true).write(true).open(device) {
            Ok(port) => OwnedFd::from(port),
            // One program at a time has it: the last session is about to close.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                thread::sleep(REST);
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut ready = [PollFd::new(&port, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let found = ready[0].revents();
        if found.contains(PollFlags::IN) && !found.contains(PollFlags::HUP) {
            return Ok(port);
        }
        // The host has not seen yet that the last session has closed.
        thread::sleep(REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        assert_eq!(find_in(&ports.path().join("none")), None);
        for (port, name) in [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport2p0", "org.axvm.agent\n")] {
            fs::create_dir(ports.path().join(port)).unwrap();
            fs::write(ports.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(find_in(ports.path()), Some("/dev/vport2p0".into()));
        fs::remove_dir_all(ports.path().join("vport2p0")).unwrap();
        assert_eq!(find_in(ports.path()), None);
    }

    #[test]
    fn a_port_is_waited_for_where_its_driver_has_a_device() {
        let devices = tempfile::tempdir().unwrap();
        assert!(!has_ports(&devices.path().join("none")));
        let device = |name: &str, id: &str, features: &str| {
            fs::create_dir(devices.path().join(name)).unwrap();
            fs::write(devices.path().join(name).join("device"), id).unwrap();
            fs::write(devices.path().join(name).join("features"), features).unwrap();
        };
        device("virtio0", "0x0004\n", "1111\n");
        device("virtio1", "0x0003\n", "1010\n");
        assert!(!has_ports(devices.path()));
        device("virtio2", "0x0003\n", "0100\n");
        assert!(has_ports(devices.path()));
    }
}
