//! Names that the emulator generates: hosts, ids and passwords.

use crate::model::secret::Secret;

/// The domain of all hosts. It is reserved for tests, so no name server knows it.
const DOMAIN: &str = "aws.neon.test";
/// All regions of the emulator.
pub(super) const REGIONS: &[&str] = &[
    "aws-us-east-1",
    "aws-us-east-2",
    "aws-us-west-2",
    "aws-eu-central-1",
    "aws-eu-west-2",
    "aws-ap-southeast-1",
];
/// The region of a project that names none.
pub(super) const DEFAULT_REGION: &str = "aws-us-east-2";

/// Returns the domain of a region's hosts: `us-east-2.aws.neon.test` for `aws-us-east-2`.
pub(super) fn domain_of(region: &str) -> String {
    format!("{}.{DOMAIN}", region.trim_start_matches("aws-"))
}

/// Returns whether a host name is one of the emulator's.
pub(super) fn is_own_host(host: &str) -> bool {
    host.ends_with(DOMAIN)
}

/// Returns an id like Neon's: two words and a number.
pub(super) fn new_id() -> String {
    const FIRST: &[&str] = &[
        "cool", "dry", "calm", "dark", "late", "odd", "shy", "still", "wild", "young",
    ];
    const SECOND: &[&str] = &[
        "bird", "bush", "dew", "fire", "hall", "lake", "moon", "pine", "rain", "sun",
    ];
    let random = uuid::Uuid::new_v4();
    let (a, b, _, rest) = random.as_fields();
    let pick = |words: &[&'static str], n: u32| words[n as usize % words.len()];
    let number = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]);
    format!(
        "{}-{}-{number:08x}",
        pick(FIRST, a),
        pick(SECOND, u32::from(b))
    )
}

/// Returns a password like Neon's.
pub(super) fn new_password() -> Secret {
    Secret::new(format!("npg_{}", uuid::Uuid::new_v4().simple()))
}
