//! Where things are: the repository, the build's output, the cache.
//!
//! Everything a command makes once and keeps (kernels, images, the lab's saved state) is in the cache, never in git:
//! removing the directory only costs the time to make it again.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies one level below the root")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// `$XDG_CACHE_HOME/axvm`, or `~/.cache/axvm`; without a home, a directory beside the build.
pub fn cache() -> PathBuf {
    let xdg = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = env::var_os("HOME").filter(|dir| !dir.is_empty()).map(|home| Path::new(&home).join(".cache"));
    xdg.or(home).unwrap_or_else(target).join("axvm")
}

/// Fingerprint of the inputs of something kept in the cache: a different input gives a different name.
pub fn fingerprint(inputs: &[&[u8]]) -> String {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    for input in inputs {
        hasher.write_usize(input.len());
        hasher.write(input);
    }
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn fingerprint_sees_where_one_input_ends() {
        assert_eq!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"ab", b"c"]));
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
