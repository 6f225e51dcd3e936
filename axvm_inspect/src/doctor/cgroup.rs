//! Limits of the control groups that this program is in.
//!
//! ```text
//!   /proc/self/cgroup   0::/user.slice/a       v2: one tree          /sys/fs/cgroup/user.slice/a/memory.max
//!                       4:memory:/docker/b     v1: one per controller  /sys/fs/cgroup/memory/docker/b/...
//! ```
//!
//! A limit of any group above counts too: the smallest one holds.

use super::Root;

/// The smallest limit of `controller`, in a file called `v2` or in the files `v1` with the same words; `None` when
/// none is set.
pub(super) fn limit(root: &Root, controller: &str, v2: &str, v1: &[&str]) -> Option<u64> {
    let groups = root.text("/proc/self/cgroup")?;
    groups.lines().filter_map(|line| tightest(root, line, controller, (v2, v1))).min()
}

/// The smallest limit along one line of /proc/self/cgroup: `ID:CONTROLLERS:PATH`.
fn tightest(root: &Root, line: &str, controller: &str, (v2, v1): (&str, &[&str])) -> Option<u64> {
    let (_, line) = line.split_once(':')?;
    let (controllers, path) = line.split_once(':')?;
    let (base, files) = match controllers {
        "" => ("/sys/fs/cgroup".to_owned(), &[v2][..]),
        _ if controllers.split(',').any(|name| name == controller) => (format!("/sys/fs/cgroup/{controllers}"), v1),
        _ => return None,
    };
    let words = |group: &str| -> Option<Vec<String>> {
        files.iter().map(|file| root.text(&format!("{base}{group}/{file}"))).collect()
    };
    directories(path).filter_map(|group| number(&words(group)?.join(" "))).min()
}

/// `/a/b`, `/a` and the root: the group and all above it.
fn directories(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).filter(|&at| at > 0);
    ends.chain([0, path.len()]).map(|end| path[..end].trim_end_matches('/'))
}

/// A limit as a number: `max` and what v1 writes for it (all memory there could be, or -1) are none.
/// Of `cpu.max` (`QUOTA PERIOD`) it is the quota in hundredths of a processor.
fn number(text: &str) -> Option<u64> {
    const V1_UNLIMITED: u64 = i64::MAX as u64 & !0xfff;
    let mut words = text.split_whitespace().map(str::parse);
    let value: u64 = words.next()?.ok()?;
    match words.next() {
        Some(Ok(period)) => (value * 100).checked_div(period),
        _ => Some(value).filter(|&value| value < V1_UNLIMITED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlimited_is_no_limit() {
        for (text, limit) in
            [("max", None), ("9223372036854771712", None), ("-1", None), ("4096", Some(4096)), ("", None)]
        {
            assert_eq!(number(text), limit, "{text}");
        }
        assert_eq!((number("max 100000"), number("150000 100000"), number("1 0")), (None, Some(150), None));
    }

    #[test]
    fn groups_above_count_too() {
        assert_eq!(directories("/a/b").collect::<Vec<_>>(), ["/a", "", "/a/b"]);
        assert_eq!(directories("/").collect::<Vec<_>>(), ["", ""]);
        assert_eq!(directories("").collect::<Vec<_>>(), ["", ""]);
    }
}
