//! A check that Neon itself does what the emulator claims.
//!
//! `NEON_API_KEY=… TENANTRY_LIVE=1 cargo test --test live` creates at most two projects, asks each claim of the table
//! in `claims.rs`, prints a line for each difference, and deletes the projects, whatever happens. Without the two
//! variables nothing is asked of Neon; then, and with `--rehearse`, the check itself is tried on an emulator in Neon's
//! place.
//!
//! | variable | what |
//! |---|---|
//! | `NEON_API_KEY`, `NEON_ORG_ID`, `NEON_REGION` | as for `TenantRouter::from_env` |
//! | `TENANTRY_LIVE` | `1` to ask Neon |
//! | `TENANTRY_LIVE_MINUTES` | most minutes; defaults to 15 |
//! | `TENANTRY_LIVE_PROJECTS` | most projects; defaults to 2 |

// A rehearsal that cannot go on says so where it stands.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::expect_used, reason = "tests")]

mod api;
mod check;
mod claims;
#[expect(dead_code, reason = "the benchmark has a `main` as well")]
#[path = "../../benches/cold_resume.rs"]
mod cold_resume;
mod emulated_neon;
mod emulated_tests;
mod findings;
mod relay;
mod test_project;

use std::{env, process::ExitCode};

use cold_resume::account::{error_chain, say};

/// The first argument with which a rehearsal starts the benchmark in a process of its own.
const BENCHMARK: &str = "cold_resume";

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = env::args().skip(1).peekable();
    if words.next_if(|word| word == BENCHMARK).is_some() {
        let ended = cold_resume::Options::parse(words).run().await;
        return exit_code(ended.map(|()| true));
    }
    let set = |name: &str| env::var(name).is_ok_and(|value| !value.is_empty());
    let live = env::var("TENANTRY_LIVE").is_ok_and(|value| value == "1");
    if live && set("NEON_API_KEY") && !env::args().any(|word| word == "--rehearse") {
        return exit_code(check::run().await);
    }
    say("live: nothing is asked of Neon: that takes NEON_API_KEY and TENANTRY_LIVE=1");
    emulated_tests::run(words).await
}

/// The exit code for a result.
fn exit_code(ended: Result<bool, tenantry::BoxError>) -> ExitCode {
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            say(&format!("live: {}", error_chain(&*err)));
            ExitCode::FAILURE
        }
    }
}
