//! One step of a schema, and its checksum.

use std::{borrow::Cow, fmt, future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::client::MigrationClient;
use crate::model::error::BoxError;

/// The checksum of a step: of its text, or of its name if it is code.
pub(super) type Checksum = [u8; 32];

/// One step of a schema.
#[allow(
    clippy::option_option,
    reason = "no limit of its own, no limit at all, or one"
)]
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) version: i64,
    pub(super) name: String,
    pub(super) work: Work,
    pub(super) checksum: Checksum,
    /// A short form of version and checksum.
    pub(super) mark: i64,
    /// A number that changes with all that can make a failed step succeed, except for the work of a step of code. Known
    /// once the schema is checked.
    pub(super) revision: i64,
    /// `true` if the step runs outside of a transaction.
    pub(super) outside: bool,
    /// `true` if the step takes away what earlier releases of the application need.
    pub(super) contract: bool,
    /// The step's own limits; the schema's hold if there is none.
    pub(super) lock_timeout: Option<Option<Duration>>,
    pub(super) statement_timeout: Option<Option<Duration>>,
    /// Checksums of other texts that are accepted where they were applied.
    pub(super) accepted: Vec<Checksum>,
}

/// The work of a step.
#[derive(Clone)]
pub(super) enum Work {
    Sql(Cow<'static, str>),
    Code(Code),
}

/// The application's function of a step of code.
pub(super) type Code =
    Arc<dyn Fn(MigrationClient) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

impl Step {
    pub(super) fn new(version: i64, name: String, work: Work) -> Self {
        let checksum = match &work {
            Work::Sql(sql) => of_text(sql),
            Work::Code(_) => Sha256::digest(format!("tenantry code\0{name}")).into(),
        };
        Self {
            version,
            name,
            work,
            checksum,
            mark: mark(version, &checksum),
            revision: 0,
            outside: false,
            contract: false,
            lock_timeout: None,
            statement_timeout: None,
            accepted: Vec::new(),
        }
    }

    /// Returns whether a database in which the step was applied with `checksum` has what this step makes.
    pub(super) fn matches(&self, checksum: &Checksum) -> bool {
        self.checksum == *checksum || self.accepted.contains(checksum)
    }
}

impl Work {
    pub(super) fn code<Fut>(work: impl Fn(MigrationClient) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self::Code(Arc::new(move |client| Box::pin(work(client))))
    }
}

/// Returns the highest version of the steps that are not held back; 0 if there is none.
pub(super) fn latest(steps: &[Step]) -> i64 {
    let open = steps.iter().filter(|step| !step.contract);
    open.map(|step| step.version).max().unwrap_or(0)
}

/// Returns the mark of a step that was applied with `checksum`.
pub(super) fn mark(version: i64, checksum: &Checksum) -> i64 {
    let digest = Sha256::new()
        .chain_update(version.to_be_bytes())
        .chain_update(checksum);
    first_bytes(&digest.finalize())
}

/// Returns the first eight bytes of a digest as a number.
pub(super) fn first_bytes(digest: &[u8]) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes)
}

/// Returns the checksum of a text. It is the same whatever characters end the lines.
fn of_text(sql: &str) -> Checksum {
    Sha256::digest(sql.replace("\r\n", "\n").replace('\r', "\n")).into()
}

/// Writes `checksum` in hexadecimal digits.
pub(super) fn to_hex(checksum: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(2 * checksum.len());
    for byte in checksum {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
    }
    text
}

/// Reads a checksum of 64 hexadecimal digits.
pub(super) fn from_hex(text: &str) -> Option<Checksum> {
    let is_hex = text.len() == 64 && text.bytes().all(|it| it.is_ascii_hexdigit());
    let mut checksum = [0; 32];
    for (byte, at) in checksum.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    is_hex.then_some(checksum)
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sql(_) => "Sql",
            Self::Code(_) => "Code",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_depends_on_the_text_and_not_on_its_line_ends() {
        let text = |sql: &'static str| of_text(sql);
        assert_eq!(text("a;\nb;\n"), text("a;\r\nb;\r\n"));
        assert_eq!(text("a;\nb;\n"), text("a;\rb;\r"));
        assert_ne!(text("a;\nb;\n"), text("a; b;\n"));
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(to_hex(&text("abc")), known);
    }

    #[test]
    fn a_checksum_is_read_as_it_was_written() {
        let checksum = of_text("abc");
        assert_eq!(from_hex(&to_hex(&checksum)), Some(checksum));
        assert_eq!(from_hex(&to_hex(&checksum).to_uppercase()), Some(checksum));
        for wrong in ["", "ab", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(from_hex(wrong), None, "{wrong:?}");
        }
    }
}
