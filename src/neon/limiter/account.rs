//! The lines of this process, one for all clients of a key.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use url::Url;

use super::line::Line;
use crate::{model::secret::Secret, sync::lock};

/// Hash of an address and a key. The key itself is not kept.
type Account = [u8; 32];

/// All lines of this process. The lock is held only for a lookup, never while a request waits for its turn.
static LINES: LazyLock<Mutex<HashMap<Account, Arc<Mutex<Line>>>>> = LazyLock::new(Mutex::default);

/// Returns the line of the clients that send `key` to `base`.
///
/// A line outlives its clients for a minute, because Neon still counts their requests.
pub(super) fn line_of(base: &Url, key: &Secret) -> Arc<Mutex<Line>> {
    let now = Instant::now();
    let mut lines = lock(&LINES);
    lines.retain(|_, line| Arc::strong_count(line) > 1 || lock(line).matters(now));
    Arc::clone(lines.entry(account(base, key)).or_default())
}

fn account(base: &Url, key: &Secret) -> Account {
    let mut hash = Sha256::new();
    // No URL contains a line break, so different pairs of address and key are different inputs.
    hash.update(base.as_str().trim_end_matches('/')); // the requests are the same with and without the slash
    hash.update("\n");
    hash.update(key.expose());
    hash.finalize().into()
}
