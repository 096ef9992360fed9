//! Foreign text, such as Neon's, in tenantry's errors.

/// Most characters of a foreign text that an error repeats.
const LONGEST: usize = 300;
/// Marks of a text that may hold a password or a key.
const SECRETIVE: [&str; 6] = [
    "postgres://",
    "postgresql://",
    "napi_",
    "npg_",
    "bearer ",
    "password",
];

/// Returns the beginning of a foreign text on one line, for an error. If the text may hold a secret, returns a fixed
/// sentence instead.
pub(crate) fn excerpt(said: &str) -> String {
    let lower = said.to_lowercase();
    if SECRETIVE.iter().any(|mark| lower.contains(mark)) {
        return "a text that is left out here, because it may contain a secret".to_owned();
    }
    let plain = said.chars().filter(|c| !c.is_control());
    plain.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_are_repeated_in_short_and_secrets_are_not() {
        assert_eq!(excerpt("no\nsuch\u{1b}[31m"), "nosuch[31m");
        assert_eq!(excerpt(&"é".repeat(9999)).chars().count(), LONGEST);
        for secret in [
            "cannot parse postgresql://r:hunter2@h/d",
            "header Authorization: Bearer hunter2",
            "no such key: NAPI_hunter2",
            "role app has npg_hunter2",
            "Password=hunter2",
        ] {
            assert!(!excerpt(secret).contains("hunter2"), "{secret}");
        }
    }
}
