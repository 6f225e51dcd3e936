//! Boots a kernel from another program: `cargo run -p axvm_machine --example boot -- bzImage [command line]`.
//!
//! ```text
//!   guest --COM1--> port --> standard output
//! ```

use std::env;
use std::error::Error;
use std::io::{Write, stdout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use axvm_console::Port;
use axvm_events::Events;
use axvm_machine::{KernelSource, MachineSpec, Ports, Resources, WaitOutcome};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let kernel = arguments.next().ok_or("usage: boot KERNEL [COMMAND LINE]")?;

    // What the machine is: one vCPU, 512 MiB, no disk, the rest as it comes.
    let mut spec = MachineSpec::new(KernelSource::File(kernel.into()));
    spec.append = arguments.filter_map(|word| word.into_string().ok()).collect::<Vec<_>>().join(" ");

    // Open what it needs, build it, and let it run.
    let resources = Resources::open(&spec, Events::default())?;
    let console = Port::new()?;
    let machine = resources.build(&spec, &Ports { com1: console.clone(), hvc0: None, debug: None })?;

    // Show what the guest says until it has a reason to stop.
    let mut said = Vec::new();
    loop {
        let outcome = machine.wait(&[console.output_ready().as_fd()], None)?;
        console.take(&mut said);
        stdout().write_all(&said)?;
        said.clear();
        if outcome == WaitOutcome::Stopped {
            break;
        }
    }
    let (reason, stopped) = machine.stop(Instant::now() + Duration::from_secs(10));
    println!("the machine stopped: {reason:?}");
    Ok(stopped?)
}
