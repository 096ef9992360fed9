//! The reset of a returned connection's session, so that the next caller finds no state of the last one.

use std::time::Duration;

use deadpool_postgres::Client;
use tokio::time::timeout;

use crate::connection::status::ConnectionStatus;

/// Longest wait for the server to reset a session.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);

/// The statements of `DISCARD ALL`, except that prepared statements stay, because the driver goes on using them. One
/// round trip.
///
/// The role is reset first, so that the rest runs as the role that logged in. The function's name is qualified, because
/// the search path was the last caller's.
const RESET: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; \
                     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

/// Resets the session of a returned connection if it may hold state. Returns whether the connection may be used again.
///
/// A connection that has been silent for longer than `longest_silence` is not reset. It may be dead, and a reset long
/// after the last caller's queries must not keep the database awake.
pub(super) async fn reset(
    client: &Client,
    status: &ConnectionStatus,
    longest_silence: Duration,
) -> bool {
    let session = &status.session;
    if !session.needs_reset() || status.is_expired() || status.was_cancelled() {
        return true; // the pool closes expired and cancelled ones
    }
    if !session.can_be_reset() || status.silent_for() > longest_silence {
        return false;
    }
    let answer = timeout(RESET_TIMEOUT, client.batch_execute(RESET)).await;
    // A request that was written just before the reset may have begun a transaction.
    matches!(answer, Ok(Ok(()))) && status.is_idle() && session.note_reset()
}
