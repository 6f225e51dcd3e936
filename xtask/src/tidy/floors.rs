//! Which crate may use which: only lower floors. And every outside dependency gives its reason.

/// The floor plan. Two crates on one floor do not know each other.
const FLOORS: [(&str, u8); 20] = [
    ("axvm_arch", 0),
    ("axvm_cpio", 0),
    ("axvm_events", 0),
    ("axvm_exec", 0),
    ("axvm_guest", 0),
    ("axvm_sandbox", 0),
    ("axvm_socket", 0),
    ("axvm_sync", 0),
    ("axvm_tap", 0),
    ("axvm_agent", 1),
    ("axvm_console", 1),
    ("axvm_memory", 1),
    ("axvm_boot", 2),
    ("axvm_kvm", 2),
    ("axvm_devices", 3),
    ("axvm_virtio", 4),
    ("axvm_inspect", 4),
    ("axvm_api", 4),
    ("axvm_machine", 5),
    ("axvm_core", 6),
];
/// Beside the house: they serve it and may look at all of it.
const BESIDE: [&str; 2] = ["fuzz", "xtask"];

/// Dependencies of this crate's manifest that do not lie on a lower floor. Those of its tests are free.
pub fn upward(krate: &str, manifest: &str) -> Vec<String> {
    if BESIDE.contains(&krate) {
        return Vec::new();
    }
    let Some(own) = floor(krate) else {
        return vec![format!("{krate}: not in the floor plan, see xtask/src/tidy/floors.rs")];
    };
    let used = entries(manifest, |section| matches!(section, "dependencies" | "build-dependencies"));
    let ours = used.map(name).filter(|name| name.starts_with("axvm_"));
    ours.filter(|name| floor(name).is_none_or(|floor| floor >= own))
        .map(|name| format!("{krate}/Cargo.toml: {krate} must not use {name}, which is not on a lower floor"))
        .collect()
}

/// Workspace dependencies from outside without a comment that says why.
pub fn undocumented(manifest: &str) -> Vec<String> {
    entries(manifest, |section| section == "workspace.dependencies")
        .filter(|line| !line.contains("path =") && !line.contains("# "))
        .map(|line| format!("Cargo.toml: dependency {} does not say why it is there", name(line)))
        .collect()
}

fn floor(krate: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == krate).map(|(_, floor)| *floor)
}

/// The `key = value` lines of the wanted sections.
fn entries(manifest: &str, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().map(str::trim).filter(move |line| {
        if line.starts_with('[') {
            inside = wanted(line.trim_matches(['[', ']']));
            return false;
        }
        inside && !line.starts_with('#') && line.contains('=')
    })
}

fn name(entry: &str) -> &str {
    entry.split(['.', '=', ' ']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upward_and_sideways_edges_are_found_and_tests_are_free() {
        let manifest = "[package]\nname = \"axvm_boot\"\n[dependencies]\naxvm_arch.workspace = true\n\
                        axvm_devices = { path = \"../axvm_devices\" }\naxvm_kvm.workspace = true\nlibc = \"1\"\n\
                        [dev-dependencies]\naxvm_core.workspace = true\n";
        let complaints = upward("axvm_boot", manifest);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].contains("axvm_devices") && complaints[1].contains("axvm_kvm"));
    }

    #[test]
    fn crate_outside_the_plan_is_found() {
        assert_eq!(upward("axvm_attic", "").len(), 1);
        assert!(upward("xtask", "[dependencies]\naxvm_core.workspace = true\n").is_empty());
    }

    #[test]
    fn dependency_without_reason_is_found() {
        let manifest = "[workspace.dependencies]\naxvm_arch = { path = \"axvm_arch\" }\nlibc = \"1\"\nclap = \"4\" # command line\n\
                        [profile.dev]\ndebug = 1\n";
        assert_eq!(undocumented(manifest), ["Cargo.toml: dependency libc does not say why it is there"]);
    }
}
