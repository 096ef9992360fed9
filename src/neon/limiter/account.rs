//! The one line in which all clients of a key stand.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use url::Url;

use super::line::Line;
use crate::{model::secret::Secret, sync::lock};

/// What stands for an address and a key. The key itself is not kept.
type Account = [u8; 32];

/// Every line of this process. Held for a look, never while a line is waited for.
static LINES: LazyLock<Mutex<HashMap<Account, Arc<Mutex<Line>>>>> = LazyLock::new(Mutex::default);

/// The line of whoever sends `key` to `base`.
///
/// It outlives its clients for a minute, because Neon remembers what they sent.
pub(super) fn line_of(base: &Url, key: &Secret) -> Arc<Mutex<Line>> {
    let now = Instant::now();
    let mut lines = lock(&LINES);
    lines.retain(|_, line| Arc::strong_count(line) > 1 || lock(line).matters(now));
    Arc::clone(lines.entry(account(base, key)).or_default())
}

fn account(base: &Url, key: &Secret) -> Account {
    let mut hash = Sha256::new();
    // No URL has a line break, so an address and a key are never mistaken for another two.
    hash.update(base.as_str().trim_end_matches('/')); // the requests are the same
    hash.update("\n");
    hash.update(key.expose());
    hash.finalize().into()
}
