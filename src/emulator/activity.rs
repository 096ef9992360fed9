//! When an idle compute goes to sleep.
//!
//! As Neon's own monitor has it: a new session, time spent in queries, or a backend that is not idle is activity; a
//! connection that merely exists is not.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, types::Type};
use tokio_util::sync::CancellationToken;

use super::{EmulatorError, compute::Compute};

/// How often Neon's monitor looks.
const LOOK: Duration = Duration::from_millis(500);

/// Longest wait for what it sees.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

const SEEN: &str = "
SELECT (SELECT coalesce(sum(active_time), 0)::float8 + coalesce(sum(sessions), 0)::float8
          FROM pg_stat_database WHERE datname NOT IN ('postgres', 'template0', 'template1')),
       coalesce(bool_or(state <> 'idle'), false),
       extract(epoch FROM clock_timestamp() - max(state_change))::float8
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> 'cloud_admin'";

/// Watches one run of `compute` and suspends it after `window` without activity. Ends with that run.
pub(super) async fn suspend_when_idle(
    compute: Arc<Compute>,
    window: Duration,
    run: CancellationToken,
) {
    loop {
        let watched = tokio::select! {
            () = run.cancelled() => return,
            watched = idle_for(&compute, window) => watched,
        };
        match watched {
            Ok(()) => {
                compute.suspend_run(&run).await;
                return;
            }
            // A crash of one of its processes makes Postgres end all sessions, this one too.
            Err(err) => tracing::debug!(%err, "emulator: lost sight of a compute; looking again"),
        }
        sleep(LOOK).await;
    }
}

/// Returns when there has been no activity for `window`.
async fn idle_for(compute: &Compute, window: Duration) -> Result<(), EmulatorError> {
    let admin = compute.admin("postgres").await?;
    let mut last_active = Instant::now();
    let mut last_total = None;
    while last_active.elapsed() < window {
        sleep(LOOK.min(window / 4)).await;
        let seen = timeout(LOOK_TIMEOUT, look(&admin)).await;
        let seen = seen.map_err(|_| EmulatorError::new("a compute does not answer"))?;
        let (total, idle) =
            seen.map_err(|err| EmulatorError::new("cannot watch a compute").because(err))?;
        let now = Instant::now();
        if last_total.replace(total) != Some(total) {
            last_active = now;
        } else if let Some(idle) = idle {
            last_active = last_active.max(now.checked_sub(idle).unwrap_or(now));
        }
    }
    Ok(())
}

/// A number that grows with every activity, and how long all sessions have been idle, if there are any.
async fn look(admin: &Client) -> Result<(f64, Option<Duration>), tokio_postgres::Error> {
    let no_types: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];
    let row = admin.query_typed(SEEN, no_types).await?.pop();
    let Some(row) = row else {
        return Ok((0.0, None));
    };
    let (total, busy, idle): (f64, bool, Option<f64>) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let idle = if busy {
        Some(Duration::ZERO)
    } else {
        idle.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))
    };
    Ok((total, idle))
}
