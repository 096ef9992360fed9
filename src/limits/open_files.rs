//! The check of the limit on open files against the limit on connections.

/// Files that a process has open besides connections: its log, its own listener and clients, the catalog, Neon's API.
const OTHERS: u64 = 100;

/// Warns if `connections` and the other files of a process exceed the limit on open files.
pub(crate) fn check(connections: usize) {
    let needed = connections as u64 + OTHERS;
    if let Some(limit) = limit().filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "the limit on open files is too low for max_connections: raise it to {needed} plus the files that the \
             application itself opens (`ulimit -n`, or LimitNOFILE= in systemd), or lower max_connections"
        );
    }
}

/// Returns the limit in force, or `None` if there is none or the platform has no such call.
#[cfg(unix)]
fn limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current
}

#[cfg(not(unix))]
fn limit() -> Option<u64> {
    None
}
