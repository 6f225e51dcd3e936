//! Developer commands whose reader has seen enough: `cargo xtask tidy | head -1` is no failure.

use std::process::{Command, Output, Stdio};

fn run(words: &[&str], output: Stdio) -> Output {
    let cache = std::env::temp_dir().join(format!("axvm-closed-pipe-{}", std::process::id()));
    std::fs::create_dir_all(cache.join("axvm/kernels")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let command = command.args(words).env("XDG_CACHE_HOME", &cache).stdin(Stdio::null()).stdout(output);
    let output = command.output().unwrap();
    std::fs::remove_dir_all(&cache).unwrap();
    output
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for words in [&["clean", "--dry-run"][..], &["tidy"], &["--help"]] {
        let read = run(words, Stdio::piped());
        assert!(!read.stdout.is_empty(), "{words:?}: {read:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = run(words, writer.into());
        assert_eq!((closed.status, closed.stderr), (read.status, read.stderr), "{words:?}");
    }
}
