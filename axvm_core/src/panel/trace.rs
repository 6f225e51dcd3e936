//! A trace that begins and ends while the machine runs.
//!
//! ```text
//!   PUT /trace, with the open file --> pause --> recording on --> resume --> thread `trace` writes
//!   PUT /trace {"action": "Stop"}  --> pause --> recording off -> resume --> it ends, GET /trace tells when
//! ```
//!
//! The pause has each vCPU take up its other loop, and each queue its tape. With a flight recorder nothing changes, and
//! nothing is paused.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use axvm_api::ControlError;
use axvm_api::types::{TraceAction, TraceRequest, TraceState, TraceStatus};

use super::{BETWEEN, Panel};
use crate::trace::Output;

/// How long the machine may take to stand still for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a file becomes if its client does not say.
const LIMIT: u64 = 256 << 20;

/// Why nothing can be dumped.
pub const NO_RECORDER: &str = "The machine keeps no last moments; start it with --flight-recorder of axvm run, or have what \
                               comes written: axvm ctl MACHINE trace start FILE";

impl Panel {
    pub(super) fn trace_status(&self) -> TraceStatus {
        let path = self.recorder.path();
        let state = match (&path, self.recorder.keeps()) {
            (Some(_), _) => TraceState::Writing,
            (None, true) => TraceState::Recording,
            (None, false) => TraceState::Off,
        };
        TraceStatus { state, path_on_host: path, failed: self.recorder.failure() }
    }

    pub(super) fn change_trace(&self, request: &TraceRequest, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        if request.action == TraceAction::Stop {
            return self.stop_trace();
        }
        if let Some(path) = self.recorder.path() {
            return Err(
                format!("A trace is being written to {path}; stop it first: axvm ctl MACHINE trace stop").into()
            );
        }
        let output = output(request, descriptors)?;
        let started = match request.action {
            TraceAction::Dump if !self.recorder.keeps() => {
                return Err(NO_RECORDER.into());
            }
            TraceAction::Dump => self.recorder.dump(output),
            _ => {
                self.switch(true)?;
                self.recorder.start(output)
            }
        };
        started.map_err(|error| ControlError(format!("{error:#}")))
    }

    fn stop_trace(&self) -> Result<(), ControlError> {
        let Some(path) = self.recorder.path() else {
            return Err("No trace is being written; axvm ctl MACHINE trace start FILE begins one".into());
        };
        // What is recorded until the machine stands still is in the file.
        self.switch(false)?;
        match self.recorder.finish() {
            true => Ok(()),
            false => Err(format!("{path} comes to its end by itself").into()),
        }
    }

    /// Has every vCPU and every queue record from now on, or no longer.
    fn switch(&self, on: bool) -> Result<(), ControlError> {
        if self.recorder.keeps() {
            return Ok(());
        }
        let machine = self.current.machine().ok_or_else(|| ControlError::from(BETWEEN))?;
        let was_paused = machine.is_paused();
        if let Err(error) = machine.pause(Instant::now() + PATIENCE) {
            let _ = machine.resume(Instant::now() + PATIENCE);
            return Err(ControlError(format!("{error}; a trace begins and ends while the machine stands still")));
        }
        self.recorder.switch(on);
        if was_paused {
            return Ok(());
        }
        machine.resume(Instant::now() + PATIENCE).map_err(|error| ControlError(error.to_string()))
    }
}

fn output(request: &TraceRequest, mut descriptors: Vec<OwnedFd>) -> Result<Output, ControlError> {
    let Some(path) = request.path_on_host.clone() else {
        return Err("path_on_host is missing: what the file is called".into());
    };
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(file), true) => Ok(Output { path, file: File::from(file), limit: request.limit.unwrap_or(LIMIT) }),
        _ => Err(format!(
            "The open file {} must come with the request (SCM_RIGHTS), one, for this process opens no file any more: axvm \
             ctl MACHINE trace start {0} does that",
            path.display()
        )
        .into()),
    }
}
