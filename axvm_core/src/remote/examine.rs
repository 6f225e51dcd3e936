//! `axvm ctl MACHINE inspect`, `registers`, `memory`, `symbols`, `dump`: what a guest's processors and memory hold.
//!
//! ```text
//!   inspect     GET /inspect, /inspect/rsp                  text, JSON
//!   registers   GET /registers                              text
//!   memory      GET /memory/vcpu0/rsp/128, piece by piece   digits, instructions, or a file
//!   symbols     GET /symbols                                a System.map
//!   dump        open FILE --PUT /dump, descriptor--> the machine writes; GET /dump until it is done
//! ```

use std::fs::{self, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axvm_api::Client;
use axvm_api::types::{DumpState, DumpStatus, GuestSymbols, Inspection, MemoryContents, VcpuRegisters};
use axvm_arch::HexBytes;
use axvm_inspect::listing;
use serde_json::Value;

use super::ps::mebibytes;
use crate::cli::MemoryArgs;
use crate::speech::{print, show};

/// Bytes in one request.
const PIECE: u64 = 32 << 10;
/// From one look at a dump to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Shows the whole machine.
pub fn inspect(client: &mut Client, walk: Option<&str>, json: bool) -> Result<()> {
    let path = match walk {
        Some(address) => format!("/inspect/{}", part(address)?),
        None => "/inspect".to_owned(),
    };
    let Inspection { version, name, sections, text } = client.get(&path)?;
    if json {
        let tree = serde_json::json!({ "version": version, "name": name, "sections": sections });
        return Ok(print(format!("{}\n", serde_json::to_string_pretty(&tree)?))?);
    }
    Ok(print(text)?)
}

/// An address that becomes a part of a path.
fn part(address: &str) -> Result<&str> {
    if address.is_empty() || !address.chars().all(|c| c.is_ascii_alphanumeric() || "_.$".contains(c)) {
        bail!("{address} is no address; name a number such as 0x100000, a register such as rsp, or a function");
    }
    Ok(address)
}

/// Tells registers.
pub fn registers(client: &mut Client, vcpu: Option<u32>, bits: bool, json: bool) -> Result<()> {
    let all: Vec<VcpuRegisters> = client.get("/registers")?;
    let count = all.len();
    let wanted: Vec<_> = all.into_iter().filter(|own| vcpu.is_none_or(|vcpu| vcpu == own.vcpu)).collect();
    if wanted.is_empty() {
        bail!("There is no vCPU {}; the machine has 0 to {}", vcpu.unwrap_or_default(), count.saturating_sub(1));
    }
    if json {
        return Ok(print(format!("{}\n", serde_json::to_string_pretty(&wanted)?))?);
    }
    let told: Vec<String> = wanted.iter().map(|own| told(own, bits)).collect();
    Ok(print(told.join("\n"))?)
}

fn told(own: &VcpuRegisters, bits: bool) -> String {
    let VcpuRegisters { vcpu, state, function, text, meanings, .. } = own;
    let function = function.as_ref().map(|name| format!(", in {name}")).unwrap_or_default();
    let meanings = if bits { format!("\n{meanings}") } else { String::new() };
    let body: String =
        text.lines().chain(meanings.lines()).map(|line| format!("  {line}").trim_end().to_owned() + "\n").collect();
    format!("vCPU {vcpu}: {state}{function}\n{body}")
}

/// Prints the kernel's functions.
pub fn symbols(client: &mut Client) -> Result<()> {
    Ok(print(client.get::<GuestSymbols>("/symbols")?.map)?)
}

/// Shows memory.
pub fn memory(client: &mut Client, args: &MemoryArgs) -> Result<()> {
    let space = if args.physical { "physical".to_owned() } else { format!("vcpu{}", args.vcpu) };
    part(&args.address)?;
    let mut all: Option<MemoryContents> = None;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < args.len {
        // What the first answer says of a register holds for all.
        let address = all.as_ref().map_or_else(
            || args.address.clone(),
            |first| format!("{:#x}", first.address.wrapping_add(bytes.len() as u64)),
        );
        let len = (args.len - bytes.len() as u64).min(PIECE);
        let piece: MemoryContents = client.get(&format!("/memory/{space}/{address}/{len}"))?;
        bytes.extend(piece.bytes.parse::<HexBytes>().context("The machine's answer is not understood")?.0);
        let end = piece.end.clone();
        all.get_or_insert(piece).end = end.clone();
        if end.is_some() {
            break;
        }
    }
    let Some(MemoryContents { address, end, walk, bits, .. }) = all else {
        bail!("The length is 0; name how many bytes to show, such as 128");
    };
    if args.walk {
        print(format!("{walk}\n"))?;
    }
    match &args.output {
        Some(path) => fs::write(path, &bytes).with_context(|| format!("Cannot write {}", path.display()))?,
        None if args.instructions => print(listing::instructions(&bytes, address, bits))?,
        None => print(listing::bytes(&bytes, address))?,
    }
    match end {
        Some(why) => bail!("The memory ends after {} bytes: {why}", bytes.len()),
        None => Ok(()),
    }
}

/// Has the machine write itself into a file.
pub fn dump(client: &mut Client, path: &Path) -> Result<()> {
    let shown = path.display();
    // The guest's memory is for its user only.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file =
        file.with_context(|| format!("Cannot write {shown}; name a file in a directory that you may write to"))?;
    if !file.metadata().with_context(|| format!("Cannot look at {shown}"))?.is_file() {
        bail!("{shown} is no file; a dump is written in pieces, with holes where the guest's memory is zero");
    }
    let begun = client.add::<Value>("/dump", &(), &[file.as_fd()]);
    let written = begun.map_err(anyhow::Error::from).and_then(|_| wait(client));
    let ram = written.inspect_err(|_| {
        // Of no use, and perhaps as large as the guest.
        let _ = fs::remove_file(path);
    });
    let ram = ram.with_context(|| format!("{shown} was not written"))?;
    let kept = file.metadata().with_context(|| format!("Cannot look at {shown}"))?.blocks() * 512;
    print(format!("{shown}: {} of RAM, {} on the disk\n", mebibytes(ram), mebibytes(kept)))?;
    Ok(())
}

/// Waits for the end of a dump, and shows at a terminal how far it is. How many bytes of RAM it has.
fn wait(client: &mut Client) -> Result<u64> {
    let is_shown = std::io::stderr().is_terminal();
    let mut told = None;
    let ended = loop {
        let DumpStatus { state, done, total, error } = client.get("/dump")?;
        match state {
            DumpState::Writing => {
                let percent = done * 100 / total.max(1);
                if is_shown && told.replace(percent) != Some(percent) {
                    show(format_args!("\r{percent:3} % of {}", mebibytes(total)));
                    let _ = std::io::stderr().flush();
                }
                thread::sleep(PAUSE);
            }
            DumpState::Written => break Ok(total),
            DumpState::Failed | DumpState::None => break Err(error.unwrap_or_else(|| "the machine was reset".into())),
        }
    };
    if told.is_some() {
        show(format_args!("\r                    \r"));
    }
    ended.map_err(anyhow::Error::msg)
}
