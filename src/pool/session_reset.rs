//! Resetting the session of a connection that came back, so that the next caller meets nothing of the last one's.

use std::time::Duration;

use deadpool_postgres::Client;
use tokio::time::timeout;

use crate::connection::status::ConnectionStatus;

/// Longest wait for the server to reset a session.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);

/// What `DISCARD ALL` undoes, except that prepared statements stay: the driver goes on using them. One round trip.
///
/// The role comes first, so that the rest runs as the role that logged in; a function's name is given in full, as a
/// search path was the last user's.
const RESET: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; \
                     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

/// Resets the session of a connection that nobody uses, if it may hold anything; says whether it may be handed on.
///
/// One that has been silent for longer than `longest_silence` is not asked: it may be dead, and a database is not to be
/// kept awake by a caller that has long been done with it.
pub(crate) async fn reset(
    client: &Client,
    watch: &ConnectionStatus,
    longest_silence: Duration,
) -> bool {
    let session = &watch.session;
    if !session.needs_reset() || watch.is_expired() || watch.was_cancelled() {
        return true; // the pool closes the latter two
    }
    if !session.can_be_reset() || watch.silent_for() > longest_silence {
        return false;
    }
    let answer = timeout(RESET_TIMEOUT, client.batch_execute(RESET)).await;
    // What was still to be written before it may have begun a transaction.
    matches!(answer, Ok(Ok(()))) && watch.is_idle() && session.note_reset()
}
