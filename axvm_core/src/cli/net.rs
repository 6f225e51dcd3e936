//! The command line of `axvm net`: taps of this host.
//!
//! ```text
//!   axvm net up tap0 --address 10.0.0.1/24     axvm net down tap0
//! ```

use clap::{Args, Subcommand};

/// `axvm net`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm net up tap0                              the lines to type
  axvm net up tap0 | sh                         types them
  sudo axvm net up tap0 --address 10.0.0.1/24   does it
  sudo axvm net down tap0

A guest that needs no address of its own in your network needs no tap: axvm run --net user.")]
pub struct NetArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: NetAction,
}

/// What can be done with a tap of this host.
#[derive(Debug, Subcommand)]
pub enum NetAction {
    /// Make a tap that a machine can have: print the lines to type, or as root do it
    Up {
        /// Its name, such as tap0
        #[arg(value_name = "NAME")]
        name: String,
        /// Made for several queue pairs: --net tap=NAME,queues=N
        #[arg(long)]
        multi_queue: bool,
        /// Address of the host at it, and the length of the network's prefix: 10.0.0.1/24
        #[arg(long, value_name = "ADDRESS/LEN")]
        address: Option<String>,
        /// The bridge that it is to be a port of
        #[arg(long, value_name = "BRIDGE")]
        bridge: Option<String>,
        /// The largest packet, in bytes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(68..=65535))]
        mtu: Option<u32>,
        /// Who may open it [default: the user, also of sudo]
        #[arg(long, value_name = "USER")]
        user: Option<String>,
    },
    /// Remove a tap: print the line to type, or as root do it
    Down {
        /// Its name, such as tap0
        #[arg(value_name = "NAME")]
        name: String,
    },
}
