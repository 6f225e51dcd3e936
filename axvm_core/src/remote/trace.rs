//! `axvm ctl MACHINE trace start|stop|dump|status`: a timeline of a machine that runs.
//!
//! ```text
//!   axvm ctl                                          the machine, which opens no file any more
//!   makes FILE  --PUT /trace, the file's descriptor-->  writes into it
//!   (with the rights of its user)
//!   waits       --GET /trace----------------------->   until it is complete
//! ```

use std::os::fd::AsFd;
use std::path::absolute;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use axvm_api::Client;
use axvm_api::types::{TraceAction, TraceRequest, TraceState, TraceStatus};

use crate::cli::TraceWord;
use crate::panel::NO_RECORDER;
use crate::settings::TraceTo;
use crate::speech::print;
use crate::trace::Output;

/// Between two looks whether a file is complete.
const PAUSE: Duration = Duration::from_millis(20);

/// Does it.
pub fn act(client: &mut Client, word: &TraceWord) -> Result<()> {
    match word {
        TraceWord::Start { to } => send(client, TraceAction::Start, to),
        TraceWord::Dump { to } => {
            send(client, TraceAction::Dump, to)?;
            wait(client)
        }
        TraceWord::Stop => {
            client.put("/trace", &TraceRequest { action: TraceAction::Stop, path_on_host: None, limit: None })?;
            wait(client)
        }
        TraceWord::Status => tell(&client.get("/trace")?),
    }
}

/// Hands the file over. First whether it can be: a file that is there stays as it is if not.
fn send(client: &mut Client, action: TraceAction, to: &TraceTo) -> Result<()> {
    let status: TraceStatus = client.get("/trace")?;
    if let Some(path) = status.path_on_host {
        bail!("A trace is being written to {path}; stop it first: axvm ctl MACHINE trace stop");
    }
    if action == TraceAction::Dump && status.state == TraceState::Off {
        bail!(NO_RECORDER);
    }
    let output = Output::open(to)?;
    let path_on_host = Some(absolute(&output.path).unwrap_or_else(|_| output.path.clone()));
    let request = TraceRequest { action, path_on_host, limit: Some(output.limit) };
    Ok(client.send_with("/trace", &request, &[output.file.as_fd()])?)
}

/// Waits until the file is complete.
fn wait(client: &mut Client) -> Result<()> {
    loop {
        let status: TraceStatus = client.get("/trace")?;
        match (status.state, status.failed) {
            (TraceState::Writing, _) => thread::sleep(PAUSE),
            (_, Some(why)) => bail!(why),
            (_, None) => return Ok(()),
        }
    }
}

fn tell(status: &TraceStatus) -> Result<()> {
    let words = match (status.state, &status.path_on_host) {
        (TraceState::Writing, Some(path)) => format!("each exit and request is written to {path}"),
        (TraceState::Off, _) => "nothing is recorded".into(),
        _ => "the last moments are kept; axvm ctl MACHINE trace dump FILE writes them".into(),
    };
    print(format!("{words}\n"))?;
    status.failed.iter().try_for_each(|why| print(format!("{why}\n")).map_err(Into::into))
}
