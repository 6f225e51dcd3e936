//! Every resource of the API in one table: what it is called, what goes in and out, and what it does.
//!
//! ```text
//!   Route { PATCH, /vm, body: VmUpdate, answer: none (204), work: |control, update| ... }
//! ```
//!
//! The types of body and answer are those of the function that does the work, and the OpenAPI document is made from the
//! same table: a resource cannot be there without being described, nor be described wrongly.
//!
//! As in Firecracker, every refusal is a 400, that of an unknown path or method too: clients know no other.
//!
//! Left out: configuration before boot, and what AxVM does not have. Their paths are known, and say so.

use std::os::fd::OwnedFd;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{Control, ControlError};
use crate::http::Response;
use crate::types::{
    Action, ActionRequest, Added, BalloonUpdate, DriveUpdate, FIRECRACKER_API, Inspection, InstanceInfo,
    MemoryContents, NetworkUpdate, NewDrive, NewNetwork, Removal, StatisticsUpdate, TraceRequest, Version, VmUpdate,
    WantedState,
};

/// One method of one path.
pub struct Route {
    /// Such as `GET`.
    pub method: &'static str,
    /// Such as `/drives/{drive_id}`.
    pub path: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// What must come in.
    pub body: Option<Body>,
    /// What goes out with 200; none: 204 without a body.
    pub answer: Option<SchemaOf>,
    /// What it does.
    pub work: Work,
}

/// A body that comes in.
pub struct Body {
    /// Its schema.
    pub schema: SchemaOf,
    /// One that is right.
    pub example: &'static str,
}

/// Makes the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// From the machine, the path, the body and the descriptors that came with it to the answer.
type Call = Box<dyn Fn(&dyn Control, &str, &[u8], Vec<OwnedFd>) -> Result<Response, ControlError> + Send + Sync>;

/// What a route does.
pub enum Work {
    /// Asks the machine, answers once.
    Call(Call),
    /// Sends events until the client goes.
    Events,
    /// Hands the connection to the console.
    Console,
    /// Sends the OpenAPI document.
    Document,
    /// Refuses, and says where it is decided, or that there is no such thing.
    Refuse(&'static str),
}

/// What `GET /console` must ask to be upgraded to.
pub const CONSOLE_PROTOCOL: &str = "axvm-console";

/// The whole API.
pub fn table() -> Vec<Route> {
    let mut routes = firecracker();
    routes.extend(hotplug());
    routes.extend(own());
    routes.extend(refused());
    routes
}

/// Devices that come and go.
fn hotplug() -> Vec<Route> {
    vec![
        add(
            "/drives/{drive_id}",
            "Add a disk on PCI: its open image comes with the request (SCM_RIGHTS), as axvm ctl NAME disk add sends it",
            r#"{"drive_id": "vdb", "path_on_host": "data.img", "block_size": 512}"#,
            |control, name, body: NewDrive, descriptors| {
                same_name(&body.drive_id, name)?;
                control.add_drive(&body, descriptors)
            },
        ),
        remove("/drives/{drive_id}", "Ask the guest to let go of a disk that was added; by force: take it away"),
        add(
            "/network-interfaces/{iface_id}",
            "Add a network card on PCI: its open cable comes with the request (SCM_RIGHTS), as axvm ctl NAME net add \
             sends it",
            r#"{"iface_id": "net1", "host_dev_name": "tap1", "guest_mac": "02:00:00:00:00:01", "cable": "tap"}"#,
            |control, name, body: NewNetwork, descriptors| {
                same_name(&body.iface_id, name)?;
                control.add_network(&body, descriptors)
            },
        ),
        remove(
            "/network-interfaces/{iface_id}",
            "Ask the guest to let go of a network card that was added; by force: take it away",
        ),
    ]
}

/// Resources that Firecracker has too.
fn firecracker() -> Vec<Route> {
    vec![
        get("/", "Who answers here", |control| {
            let status = control.status()?;
            let (app_name, vmm_version) = ("AxVM".into(), status.version);
            Ok(InstanceInfo { app_name, id: status.name, state: status.state, vmm_version })
        }),
        get("/version", "Versions of the API and of AxVM", |control| {
            Ok(Version { firecracker_version: FIRECRACKER_API.into(), axvm_version: control.status()?.version })
        }),
        get("/vm/config", "What the machine was built from", |control| control.config()),
        get("/machine-config", "CPUs and memory", |control| Ok(control.config()?.machine_config)),
        get("/balloon", "The balloon and its target", |control| control.balloon()),
        send(
            "PATCH",
            "/balloon",
            "Ask the guest to give up memory",
            r#"{"amount_mib": 64}"#,
            |control, body: BalloonUpdate| control.set_balloon(body.amount_mib),
        ),
        get("/balloon/statistics", "What the guest last said about its memory", |control| control.balloon_statistics()),
        send(
            "PATCH",
            "/balloon/statistics",
            "How often the guest reports about its memory",
            r#"{"stats_polling_interval_s": 5}"#,
            |control, body: StatisticsUpdate| control.set_statistics_interval(body.stats_polling_interval_s),
        ),
        send_to(
            "PATCH",
            "/drives/{drive_id}",
            "Set the rates of a disk; without them, look at the size of its image again, and tell the guest if it grew",
            r#"{"drive_id": "vda"}"#,
            |control, path, body: DriveUpdate| match path.rsplit('/').next() == Some(&*body.drive_id) {
                true => control.update_drive(&body),
                false => {
                    Err(format!("The body is about {}, and the path is {path}; name one disk", body.drive_id).into())
                }
            },
        ),
        send_to(
            "PATCH",
            "/network-interfaces/{iface_id}",
            "Plug the cable of a network card in, or pull it; set its rates",
            r#"{"iface_id": "net0", "link": "down"}"#,
            |control, path, body: NetworkUpdate| match path.rsplit('/').next() == Some(&*body.iface_id) {
                true => control.update_network(&body),
                false => {
                    Err(format!("The body is about {}, and the path is {path}; name one card", body.iface_id).into())
                }
            },
        ),
        send("PATCH", "/vm", "Pause or resume", r#"{"state": "Paused"}"#, |control, body: VmUpdate| match body.state {
            WantedState::Paused => control.pause(),
            WantedState::Resumed => control.resume(),
        }),
        send("PUT", "/actions", "Do something once", r#"{"action_type": "PowerButton"}"#, act),
    ]
}

fn act(control: &dyn Control, request: ActionRequest) -> Result<(), ControlError> {
    match request.action_type {
        Action::PowerButton | Action::SendCtrlAltDel => control.power_button(),
        Action::Nmi => control.nmi(),
        Action::Break => control.serial_break(),
        Action::Reset => control.reset(),
        Action::Stop => control.stop(),
        Action::FlushMetrics => Ok(()),
        Action::InstanceStart => Err("The machine is started already".into()),
    }
}

/// Resources that only AxVM has.
fn own() -> Vec<Route> {
    let special = |path, summary, work| Route { method: "GET", path, summary, body: None, answer: None, work };
    vec![
        get("/status", "The machine at a glance", |control| control.status()),
        get("/explain", "What the guest does, and what that usually means: for one that does not move", |control| {
            control.explain()
        }),
        get("/inspect", "The whole machine at one moment: memory, vCPUs, clocks, interrupt lines, queues", |control| {
            control.inspect(None)
        }),
        inspect(),
        get("/registers", "The registers of each vCPU", |control| control.registers()),
        memory(),
        get("/symbols", "What the guest's kernel calls its functions, and where they are", |control| control.symbols()),
        take(
            "/dump",
            "Write memory and registers as an ELF core into an open file, which comes with the request (SCM_RIGHTS), as \
             axvm ctl NAME dump sends it; the machine stands still meanwhile",
            |control, descriptors| control.dump(descriptors),
        ),
        take(
            "/gdb",
            "Serve gdb at the other end of a socket, which comes with the request (SCM_RIGHTS), as axvm ctl NAME gdb \
             sends it",
            |control, descriptors| control.debug(descriptors),
        ),
        get("/dump", "How far the last dump is", |control| control.dump_status()),
        get("/trace", "What is recorded, and to which file it is written", |control| control.tracing()),
        send_with(
            "/trace",
            "Begin or end a trace, or write the last moments: the open file comes with the request (SCM_RIGHTS), as axvm \
             ctl NAME trace sends it",
            r#"{"action": "Start", "path_on_host": "t.json"}"#,
            |control, body: TraceRequest, descriptors| control.trace(&body, descriptors),
        ),
        get("/network-interfaces", "The network cards: cables, links, frames", |control| {
            Ok(control.status()?.networks)
        }),
        get("/vsock", "The socket device: address, socket, connections", |control| {
            let none = || ControlError::from("The machine has no socket device; start it with --vsock of axvm run");
            control.status()?.vsock.ok_or_else(none)
        }),
        special("/events", "Events as they happen, one JSON object a line, until the client goes", Work::Events),
        special("/console", "The console: send Upgrade: axvm-console, then raw bytes both ways", Work::Console),
        special("/openapi.json", "This description", Work::Document),
    ]
}

/// A route that is given descriptors, and nothing else.
fn take<F>(path: &'static str, summary: &'static str, take: F) -> Route
where
    F: Fn(&dyn Control, Vec<OwnedFd>) -> Result<(), ControlError> + Send + Sync + 'static,
{
    let call = move |control: &dyn Control, _: &str, _: &[u8], descriptors| {
        take(control, descriptors).map(|()| Response::done())
    };
    Route { method: "PUT", path, summary, body: None, answer: None, work: Work::Call(Box::new(call)) }
}

/// A route whose path says what to read.
fn inspect() -> Route {
    Route {
        method: "GET",
        path: "/inspect/{address}",
        summary: "The same, and how the first vCPU translates an address: a number, a register such as rsp, or a symbol",
        body: None,
        answer: Some(SchemaGenerator::subschema_for::<Inspection>),
        work: Work::Call(Box::new(|control, path, _, _| match path.split('/').skip(2).collect::<Vec<_>>()[..] {
            [address] => control.inspect(Some(address)).map(|inspection| Response::json(&inspection)),
            _ => Err("The path is /inspect/ADDRESS".into()),
        })),
    }
}

fn memory() -> Route {
    Route {
        method: "GET",
        path: "/memory/{space}/{address}/{len}",
        summary: "Some of the guest's memory: space is physical, or vcpu0 for linear addresses as that vCPU has them; \
                  address a number, a register such as rsp, or a symbol",
        body: None,
        answer: Some(SchemaGenerator::subschema_for::<MemoryContents>),
        work: Work::Call(Box::new(|control, path, _, _| match path.split('/').skip(2).collect::<Vec<_>>()[..] {
            [space, address, len] => control.memory(space, address, len).map(|contents| Response::json(&contents)),
            _ => Err("The path is /memory/SPACE/ADDRESS/LENGTH".into()),
        })),
    }
}

const HARDWARE: &str = "Only before the machine is started: give --cpus and --memory of axvm run";
const NO_SNAPSHOTS: &str = "AxVM has no snapshots";

/// Firecracker's resources that a machine that runs does not take.
fn refused() -> Vec<Route> {
    let paths = [
        ("PUT", "/boot-source", "Only before the machine is started: give --kernel, --initrd and --append of axvm run"),
        ("PUT", "/machine-config", HARDWARE),
        ("PATCH", "/machine-config", HARDWARE),
        ("PUT", "/cpu-config", "Only before the machine is started: give --cpu of axvm run"),
        ("PUT", "/balloon", "Every machine has its balloon from the start: PATCH /balloon sets it"),
        (
            "PUT",
            "/entropy",
            "Every machine has its entropy device from the start: give --entropy-rate of axvm run to limit it",
        ),
        ("PUT", "/serial", "Only before the machine is started: give --console of axvm run"),
        ("PUT", "/vsock", "Only before the machine is started: give --vsock of axvm run"),
        (
            "PUT",
            "/logger",
            "AxVM keeps no log: --verbose of axvm run tells on standard error, GET /events tells programs",
        ),
        ("PUT", "/metrics", "AxVM keeps no metrics: GET /status and GET /events tell programs"),
        ("PUT", "/snapshot/create", NO_SNAPSHOTS),
        ("PUT", "/snapshot/load", NO_SNAPSHOTS),
        ("PUT", "/mmds", "AxVM has no metadata service"),
        ("PUT", "/mmds/config", "AxVM has no metadata service"),
    ];
    let summary = "Not while a machine runs: refused, with the reason";
    let route =
        |(method, path, why)| Route { method, path, summary, body: None, answer: None, work: Work::Refuse(why) };
    paths.into_iter().map(route).collect()
}

/// A route that says something.
fn get<T, F>(path: &'static str, summary: &'static str, ask: F) -> Route
where
    T: Serialize + JsonSchema,
    F: Fn(&dyn Control) -> Result<T, ControlError> + Send + Sync + 'static,
{
    let call = move |control: &dyn Control, _: &str, _: &[u8], _| ask(control).map(|value| Response::json(&value));
    let answer: SchemaOf = SchemaGenerator::subschema_for::<T>;
    Route { method: "GET", path, summary, body: None, answer: Some(answer), work: Work::Call(Box::new(call)) }
}

/// A route that is told something.
fn send<T, F>(method: &'static str, path: &'static str, summary: &'static str, example: &'static str, tell: F) -> Route
where
    T: DeserializeOwned + JsonSchema,
    F: Fn(&dyn Control, T) -> Result<(), ControlError> + Send + Sync + 'static,
{
    send_to(method, path, summary, example, move |control, _, body| tell(control, body))
}

/// The same, where the path says of what.
fn send_to<T, F>(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    example: &'static str,
    tell: F,
) -> Route
where
    T: DeserializeOwned + JsonSchema,
    F: Fn(&dyn Control, &str, T) -> Result<(), ControlError> + Send + Sync + 'static,
{
    let call = move |control: &dyn Control, at: &str, body: &[u8], _| {
        tell(control, at, understood(method, path, example, body)?).map(|()| Response::done())
    };
    let body = Body { schema: SchemaGenerator::subschema_for::<T>, example };
    Route { method, path, summary, body: Some(body), answer: None, work: Work::Call(Box::new(call)) }
}

/// A route that is given descriptors, and says what became of them.
fn add<T, F>(path: &'static str, summary: &'static str, example: &'static str, add: F) -> Route
where
    T: DeserializeOwned + JsonSchema,
    F: Fn(&dyn Control, &str, T, Vec<OwnedFd>) -> Result<Added, ControlError> + Send + Sync + 'static,
{
    let call = move |control: &dyn Control, at: &str, body: &[u8], descriptors| {
        let body = understood("PUT", path, example, body)?;
        add(control, at.rsplit('/').next().unwrap_or_default(), body, descriptors).map(|added| Response::json(&added))
    };
    let body = Body { schema: SchemaGenerator::subschema_for::<T>, example };
    let answer: SchemaOf = SchemaGenerator::subschema_for::<Added>;
    Route { method: "PUT", path, summary, body: Some(body), answer: Some(answer), work: Work::Call(Box::new(call)) }
}

/// A route that is given descriptors, and has nothing to say.
fn send_with<T, F>(path: &'static str, summary: &'static str, example: &'static str, tell: F) -> Route
where
    T: DeserializeOwned + JsonSchema,
    F: Fn(&dyn Control, T, Vec<OwnedFd>) -> Result<(), ControlError> + Send + Sync + 'static,
{
    let call = move |control: &dyn Control, _: &str, body: &[u8], descriptors| {
        tell(control, understood("PUT", path, example, body)?, descriptors).map(|()| Response::done())
    };
    let body = Body { schema: SchemaGenerator::subschema_for::<T>, example };
    Route { method: "PUT", path, summary, body: Some(body), answer: None, work: Work::Call(Box::new(call)) }
}

/// A route that removes what its path names; a body is not needed.
fn remove(path: &'static str, summary: &'static str) -> Route {
    let example = r#"{"force": true}"#;
    let call = move |control: &dyn Control, at: &str, body: &[u8], _| {
        let name = at.rsplit('/').next().unwrap_or_default();
        let mut removal: Removal =
            if body.is_empty() { Removal::default() } else { understood("DELETE", path, example, body)? };
        if removal.id.is_empty() {
            removal.id = name.to_owned();
        }
        same_name(&removal.id, name)?;
        control.remove(&removal).map(|()| Response::done())
    };
    let body = Body { schema: SchemaGenerator::subschema_for::<Removal>, example };
    Route { method: "DELETE", path, summary, body: Some(body), answer: None, work: Work::Call(Box::new(call)) }
}

fn understood<T: DeserializeOwned>(method: &str, path: &str, example: &str, body: &[u8]) -> Result<T, ControlError> {
    let error =
        |error| format!("The body of {method} {path} is not understood: {error}. Send such as {example}").into();
    serde_json::from_slice(body).map_err(error)
}

/// Body and path are about one device.
fn same_name(body: &str, path: &str) -> Result<(), ControlError> {
    match body == path {
        true => Ok(()),
        false => Err(format!("The body is about {body}, and the path about {path}; name one device").into()),
    }
}

impl Route {
    /// Whether this is what the client asked for.
    pub fn is(&self, method: &str, path: &str) -> bool {
        let same = |(ours, theirs): (&str, &str)| ours == theirs || ours.starts_with('{') && !theirs.is_empty();
        self.method == method
            && self.path.split('/').count() == path.split('/').count()
            && self.path.split('/').zip(path.split('/')).all(same)
    }
}
